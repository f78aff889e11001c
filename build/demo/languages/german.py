# SPDX-License-Identifier: Apache-2.0
"""Captions in German."""

from scenes import Description

# one, and several
NAMES = {
    "airplane": "ein Flugzeug, Flugzeuge",
    "alarm clock": "ein Wecker, Wecker",
    "anchor": "ein Anker, Anker",
    "apple": "ein Apfel, Äpfel",
    "avocado": "eine Avocado, Avocados",
    "balloon": "ein Luftballon, Luftballons",
    "banana": "eine Banane, Bananen",
    "basketball": "ein Basketball, Basketbälle",
    "bell": "eine Glocke, Glocken",
    "bicycle": "ein Fahrrad, Fahrräder",
    "book": "ein Buch, Bücher",
    "bus": "ein Bus, Busse",
    "butterfly": "ein Schmetterling, Schmetterlinge",
    "cactus": "ein Kaktus, Kakteen",
    "camera": "ein Fotoapparat, Fotoapparate",
    "candle": "eine Kerze, Kerzen",
    "car": "ein Auto, Autos",
    "carrot": "eine Karotte, Karotten",
    "cat": "eine Katze, Katzen",
    "cherry": "eine Kirsche, Kirschen",
    "chicken": "ein Huhn, Hühner",
    "coconut": "eine Kokosnuss, Kokosnüsse",
    "crab": "ein Krebs, Krebse",
    "crown": "eine Krone, Kronen",
    "cucumber": "eine Gurke, Gurken",
    "dog": "ein Hund, Hunde",
    "door": "eine Tür, Türen",
    "doughnut": "ein Donut, Donuts",
    "duck": "eine Ente, Enten",
    "egg": "ein Ei, Eier",
    "eggplant": "eine Aubergine, Auberginen",
    "elephant": "ein Elefant, Elefanten",
    "fish": "ein Fisch, Fische",
    "flower": "eine Sonnenblume, Sonnenblumen",
    "fox": "ein Fuchs, Füchse",
    "frog": "ein Frosch, Frösche",
    "ghost": "ein Gespenst, Gespenster",
    "gift": "ein Geschenk, Geschenke",
    "guitar": "eine Gitarre, Gitarren",
    "hamburger": "ein Hamburger, Hamburger",
    "hammer": "ein Hammer, Hämmer",
    "hat": "ein Zylinder, Zylinder",
    "house": "ein Haus, Häuser",
    "key": "ein Schlüssel, Schlüssel",
    "kiwi": "eine Kiwi, Kiwis",
    "ladybug": "ein Marienkäfer, Marienkäfer",
    "leaf": "ein Ahornblatt, Ahornblätter",
    "lemon": "eine Zitrone, Zitronen",
    "light bulb": "eine Glühbirne, Glühbirnen",
    "lion": "ein Löwe, Löwen",
    "magnet": "ein Magnet, Magnete",
    "mushroom": "ein Fliegenpilz, Fliegenpilze",
    "octopus": "ein Oktopus, Oktopusse",
    "owl": "eine Eule, Eulen",
    "panda": "ein Panda, Pandas",
    "pear": "eine Birne, Birnen",
    "pencil": "ein Bleistift, Bleistifte",
    "penguin": "ein Pinguin, Pinguine",
    "pig": "ein Schwein, Schweine",
    "pineapple": "eine Ananas, Ananas",
    "pizza": "eine Pizza, Pizzas",
    "pumpkin": "ein Kürbis, Kürbisse",
    "robot": "ein Roboter, Roboter",
    "rocket": "eine Rakete, Raketen",
    "shark": "ein Hai, Haie",
    "snail": "eine Schnecke, Schnecken",
    "snowman": "ein Schneemann, Schneemänner",
    "star": "ein Stern, Sterne",
    "strawberry": "eine Erdbeere, Erdbeeren",
    "sun": "eine Sonne, Sonnen",
    "tractor": "ein Traktor, Traktoren",
    "tree": "ein Nadelbaum, Nadelbäume",
    "trophy": "ein Pokal, Pokale",
    "trumpet": "eine Trompete, Trompeten",
    "turtle": "eine Schildkröte, Schildkröten",
    "umbrella": "ein Regenschirm, Regenschirme",
    "unicorn": "ein Einhorn, Einhörner",
    "watch": "eine Armbanduhr, Armbanduhren",
    "watermelon": "eine Wassermelone, Wassermelonen",
    "whale": "ein Wal, Wale",
}

WEAK = {"ein Elefant", "ein Löwe"}  # nouns that end in -n in the dative

BACKGROUNDS: dict[str | None, str] = {  # in the dative
    "blue": "blauem",
    "brown": "braunem",
    "green": "grünem",
    "grey": "grauem",
    "pink": "rosa",
    "purple": "lila",
    "white": "weißem",
    "yellow": "gelbem",
}


def caption(description: Description) -> str:
    """The description in German."""
    first, plural = NAMES[description.names[0]].split(", ")
    last, _ = NAMES[description.names[-1]].split(", ")
    match description.arrangement:
        case "one":
            subject = first
        case "two":
            subject = f"zwei {plural}"
        case "left":
            subject = f"{first} links von {_dative(last)}"
        case "above":
            subject = f"{first} über {_dative(last)}"
    return f"{subject} auf {BACKGROUNDS[description.background]} Hintergrund"


def _dative(noun: str) -> str:
    article, word = noun.split()
    ending = ("n" if word.endswith("e") else "en") if noun in WEAK else ""
    return f"{'einer' if article == 'eine' else 'einem'} {word}{ending}"
