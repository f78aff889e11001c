# SPDX-License-Identifier: Apache-2.0
"""Captions in French."""

from scenes import Description

# one, and several
NAMES = {
    "airplane": "un avion, avions",
    "alarm clock": "un réveil, réveils",
    "anchor": "une ancre, ancres",
    "apple": "une pomme, pommes",
    "avocado": "un avocat, avocats",
    "balloon": "un ballon, ballons",
    "banana": "une banane, bananes",
    "basketball": "un ballon de basket, ballons de basket",
    "bell": "une cloche, cloches",
    "bicycle": "un vélo, vélos",
    "book": "un livre, livres",
    "bus": "un bus, bus",
    "butterfly": "un papillon, papillons",
    "cactus": "un cactus, cactus",
    "camera": "un appareil photo, appareils photo",
    "candle": "une bougie, bougies",
    "car": "une voiture, voitures",
    "carrot": "une carotte, carottes",
    "cat": "un chat, chats",
    "cherry": "une cerise, cerises",
    "chicken": "une poule, poules",
    "coconut": "une noix de coco, noix de coco",
    "crab": "un crabe, crabes",
    "crown": "une couronne, couronnes",
    "cucumber": "un concombre, concombres",
    "dog": "un chien, chiens",
    "door": "une porte, portes",
    "doughnut": "un beignet, beignets",
    "duck": "un canard, canards",
    "egg": "un œuf, œufs",
    "eggplant": "une aubergine, aubergines",
    "elephant": "un éléphant, éléphants",
    "fish": "un poisson, poissons",
    "flower": "un tournesol, tournesols",
    "fox": "un renard, renards",
    "frog": "une grenouille, grenouilles",
    "ghost": "un fantôme, fantômes",
    "gift": "un cadeau, cadeaux",
    "guitar": "une guitare, guitares",
    "hamburger": "un hamburger, hamburgers",
    "hammer": "un marteau, marteaux",
    "hat": "un haut-de-forme, hauts-de-forme",
    "house": "une maison, maisons",
    "key": "une clé, clés",
    "kiwi": "un kiwi, kiwis",
    "ladybug": "une coccinelle, coccinelles",
    "leaf": "une feuille d'érable, feuilles d'érable",
    "lemon": "un citron, citrons",
    "light bulb": "une ampoule, ampoules",
    "lion": "un lion, lions",
    "magnet": "un aimant, aimants",
    "mushroom": "un champignon, champignons",
    "octopus": "une pieuvre, pieuvres",
    "owl": "une chouette, chouettes",
    "panda": "un panda, pandas",
    "pear": "une poire, poires",
    "pencil": "un crayon, crayons",
    "penguin": "un pingouin, pingouins",
    "pig": "un cochon, cochons",
    "pineapple": "un ananas, ananas",
    "pizza": "une pizza, pizzas",
    "pumpkin": "une citrouille, citrouilles",
    "robot": "un robot, robots",
    "rocket": "une fusée, fusées",
    "shark": "un requin, requins",
    "snail": "un escargot, escargots",
    "snowman": "un bonhomme de neige, bonshommes de neige",
    "star": "une étoile, étoiles",
    "strawberry": "une fraise, fraises",
    "sun": "un soleil, soleils",
    "tractor": "un tracteur, tracteurs",
    "tree": "un sapin, sapins",
    "trophy": "un trophée, trophées",
    "trumpet": "une trompette, trompettes",
    "turtle": "une tortue, tortues",
    "umbrella": "un parapluie, parapluies",
    "unicorn": "une licorne, licornes",
    "watch": "une montre, montres",
    "watermelon": "une pastèque, pastèques",
    "whale": "une baleine, baleines",
}

BACKGROUNDS: dict[str | None, str] = {
    "blue": "bleu",
    "brown": "marron",
    "green": "vert",
    "grey": "gris",
    "pink": "rose",
    "purple": "violet",
    "white": "blanc",
    "yellow": "jaune",
}


def caption(description: Description) -> str:
    """The description in French."""
    first, plural = NAMES[description.names[0]].split(", ")
    last, _ = NAMES[description.names[-1]].split(", ")
    match description.arrangement:
        case "one":
            subject = first
        case "two":
            subject = f"deux {plural}"
        case "left":
            subject = f"{first} à gauche d'{last}"
        case "above":
            subject = f"{first} au-dessus d'{last}"
    return f"{subject} sur un fond {BACKGROUNDS[description.background]}"
