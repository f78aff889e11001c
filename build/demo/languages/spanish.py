# SPDX-License-Identifier: Apache-2.0
"""Captions in Spanish."""

from scenes import Description

# one, and several
NAMES = {
    "airplane": "un avión, aviones",
    "alarm clock": "un despertador, despertadores",
    "anchor": "un ancla, anclas",
    "apple": "una manzana, manzanas",
    "avocado": "un aguacate, aguacates",
    "balloon": "un globo, globos",
    "banana": "un plátano, plátanos",
    "basketball": "un balón de baloncesto, balones de baloncesto",
    "bell": "una campana, campanas",
    "bicycle": "una bicicleta, bicicletas",
    "book": "un libro, libros",
    "bus": "un autobús, autobuses",
    "butterfly": "una mariposa, mariposas",
    "cactus": "un cactus, cactus",
    "camera": "una cámara de fotos, cámaras de fotos",
    "candle": "una vela, velas",
    "car": "un coche, coches",
    "carrot": "una zanahoria, zanahorias",
    "cat": "un gato, gatos",
    "cherry": "una cereza, cerezas",
    "chicken": "una gallina, gallinas",
    "coconut": "un coco, cocos",
    "crab": "un cangrejo, cangrejos",
    "crown": "una corona, coronas",
    "cucumber": "un pepino, pepinos",
    "dog": "un perro, perros",
    "door": "una puerta, puertas",
    "doughnut": "un dónut, dónuts",
    "duck": "un pato, patos",
    "egg": "un huevo, huevos",
    "eggplant": "una berenjena, berenjenas",
    "elephant": "un elefante, elefantes",
    "fish": "un pez, peces",
    "flower": "un girasol, girasoles",
    "fox": "un zorro, zorros",
    "frog": "una rana, ranas",
    "ghost": "un fantasma, fantasmas",
    "gift": "un regalo, regalos",
    "guitar": "una guitarra, guitarras",
    "hamburger": "una hamburguesa, hamburguesas",
    "hammer": "un martillo, martillos",
    "hat": "un sombrero de copa, sombreros de copa",
    "house": "una casa, casas",
    "key": "una llave, llaves",
    "kiwi": "un kiwi, kiwis",
    "ladybug": "una mariquita, mariquitas",
    "leaf": "una hoja de arce, hojas de arce",
    "lemon": "un limón, limones",
    "light bulb": "una bombilla, bombillas",
    "lion": "un león, leones",
    "magnet": "un imán, imanes",
    "mushroom": "un champiñón, champiñones",
    "octopus": "un pulpo, pulpos",
    "owl": "un búho, búhos",
    "panda": "un panda, pandas",
    "pear": "una pera, peras",
    "pencil": "un lápiz, lápices",
    "penguin": "un pingüino, pingüinos",
    "pig": "un cerdo, cerdos",
    "pineapple": "una piña, piñas",
    "pizza": "una pizza, pizzas",
    "pumpkin": "una calabaza, calabazas",
    "robot": "un robot, robots",
    "rocket": "un cohete, cohetes",
    "shark": "un tiburón, tiburones",
    "snail": "un caracol, caracoles",
    "snowman": "un muñeco de nieve, muñecos de nieve",
    "star": "una estrella, estrellas",
    "strawberry": "una fresa, fresas",
    "sun": "un sol, soles",
    "tractor": "un tractor, tractores",
    "tree": "un árbol, árboles",
    "trophy": "un trofeo, trofeos",
    "trumpet": "una trompeta, trompetas",
    "turtle": "una tortuga, tortugas",
    "umbrella": "un paraguas, paraguas",
    "unicorn": "un unicornio, unicornios",
    "watch": "un reloj, relojes",
    "watermelon": "una sandía, sandías",
    "whale": "una ballena, ballenas",
}

BACKGROUNDS: dict[str | None, str] = {
    "blue": "azul",
    "brown": "marrón",
    "green": "verde",
    "grey": "gris",
    "pink": "rosa",
    "purple": "morado",
    "white": "blanco",
    "yellow": "amarillo",
}


def caption(description: Description) -> str:
    """The description in Spanish."""
    first, plural = NAMES[description.names[0]].split(", ")
    last, _ = NAMES[description.names[-1]].split(", ")
    match description.arrangement:
        case "one":
            subject = first
        case "two":
            subject = f"dos {plural}"
        case "left":
            subject = f"{first} a la izquierda de {last}"
        case "above":
            subject = f"{first} encima de {last}"
    return f"{subject} sobre un fondo {BACKGROUNDS[description.background]}"
