# SPDX-License-Identifier: Apache-2.0
"""Captions in Japanese."""

from scenes import Description

# a name, and how two are counted
NAMES = {
    "airplane": "飛行機 二機",
    "alarm clock": "目覚まし時計 二つ",
    "anchor": "錨 二つ",
    "apple": "リンゴ 二つ",
    "avocado": "アボカド 二つ",
    "balloon": "風船 二つ",
    "banana": "バナナ 二本",
    "basketball": "バスケットボール 二つ",
    "bell": "ベル 二つ",
    "bicycle": "自転車 二台",
    "book": "本 二冊",
    "bus": "バス 二台",
    "butterfly": "チョウ 二匹",
    "cactus": "サボテン 二本",
    "camera": "カメラ 二台",
    "candle": "ろうそく 二本",
    "car": "自動車 二台",
    "carrot": "人参 二本",
    "cat": "ネコ 二匹",
    "cherry": "さくらんぼ 二つ",
    "chicken": "にわとり 二羽",
    "coconut": "ココナツ 二つ",
    "crab": "カニ 二匹",
    "crown": "王冠 二つ",
    "cucumber": "キュウリ 二本",
    "dog": "イヌ 二匹",
    "door": "ドア 二つ",
    "doughnut": "ドーナツ 二つ",
    "duck": "カモ 二羽",
    "egg": "卵 二つ",
    "eggplant": "ナス 二本",
    "elephant": "ゾウ 二頭",
    "fish": "魚 二匹",
    "flower": "ヒマワリ 二本",
    "fox": "キツネ 二匹",
    "frog": "カエル 二匹",
    "ghost": "お化け 二匹",
    "gift": "プレゼント 二つ",
    "guitar": "ギター 二本",
    "hamburger": "ハンバーガー 二つ",
    "hammer": "ハンマー 二本",
    "hat": "シルクハット 二つ",
    "house": "家 二軒",
    "key": "鍵 二本",
    "kiwi": "キウイフルーツ 二つ",
    "ladybug": "テントウムシ 二匹",
    "leaf": "カエデの葉 二枚",
    "lemon": "レモン 二つ",
    "light bulb": "電球 二つ",
    "lion": "ライオン 二頭",
    "magnet": "磁石 二つ",
    "mushroom": "キノコ 二本",
    "octopus": "タコ 二匹",
    "owl": "フクロウ 二羽",
    "panda": "パンダ 二頭",
    "pear": "洋ナシ 二つ",
    "pencil": "鉛筆 二本",
    "penguin": "ペンギン 二羽",
    "pig": "ブタ 二匹",
    "pineapple": "パイナップル 二つ",
    "pizza": "ピザ 二枚",
    "pumpkin": "かぼちゃ 二つ",
    "robot": "ロボット 二体",
    "rocket": "ロケット 二機",
    "shark": "サメ 二匹",
    "snail": "かたつむり 二匹",
    "snowman": "雪だるま 二つ",
    "star": "星 二つ",
    "strawberry": "いちご 二つ",
    "sun": "太陽 二つ",
    "tractor": "トラクター 二台",
    "tree": "木 二本",
    "trophy": "トロフィー 二つ",
    "trumpet": "トランペット 二本",
    "turtle": "カメ 二匹",
    "umbrella": "傘 二本",
    "unicorn": "ユニコーン 二頭",
    "watch": "腕時計 二つ",
    "watermelon": "スイカ 二つ",
    "whale": "クジラ 二頭",
}

COUNTERS_OF_BEINGS = "匹頭羽体"  # what is counted so lives, or seems to: it is いる, not ある

BACKGROUNDS: dict[str | None, str] = {
    "blue": "青い背景",
    "brown": "茶色い背景",
    "green": "緑の背景",
    "grey": "灰色の背景",
    "pink": "ピンクの背景",
    "purple": "紫の背景",
    "white": "白い背景",
    "yellow": "黄色い背景",
}


def caption(description: Description) -> str:
    """The description in Japanese."""
    first, two = NAMES[description.names[0]].split()
    last, _ = NAMES[description.names[-1]].split()
    background = BACKGROUNDS[description.background]
    is_there = "いる" if two[1] in COUNTERS_OF_BEINGS else "ある"
    match description.arrangement:
        case "one":
            return f"{background}に{first}が{is_there}"
        case "two":
            return f"{background}に{first}が{two}{is_there}"
        case "left":
            return f"{background}で、{last}の左に{first}が{is_there}"
        case "above":
            return f"{background}で、{last}の上に{first}が{is_there}"
