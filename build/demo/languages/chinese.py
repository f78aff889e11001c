# SPDX-License-Identifier: Apache-2.0
"""Captions in simplified Chinese."""

from scenes import Description

# one, with its measure word
NAMES = {
    "airplane": "一架飞机",
    "alarm clock": "一个闹钟",
    "anchor": "一个锚",
    "apple": "一个苹果",
    "avocado": "一个鳄梨",
    "balloon": "一个气球",
    "banana": "一根香蕉",
    "basketball": "一个篮球",
    "bell": "一个铃铛",
    "bicycle": "一辆自行车",
    "book": "一本书",
    "bus": "一辆公交车",
    "butterfly": "一只蝴蝶",
    "cactus": "一棵仙人掌",
    "camera": "一台相机",
    "candle": "一支蜡烛",
    "car": "一辆汽车",
    "carrot": "一根胡萝卜",
    "cat": "一只猫",
    "cherry": "一颗樱桃",
    "chicken": "一只鸡",
    "coconut": "一个椰子",
    "crab": "一只螃蟹",
    "crown": "一顶皇冠",
    "cucumber": "一根黄瓜",
    "dog": "一只狗",
    "door": "一扇门",
    "doughnut": "一个甜甜圈",
    "duck": "一只鸭子",
    "egg": "一个鸡蛋",
    "eggplant": "一个茄子",
    "elephant": "一头大象",
    "fish": "一条鱼",
    "flower": "一朵向日葵",
    "fox": "一只狐狸",
    "frog": "一只青蛙",
    "ghost": "一个幽灵",
    "gift": "一份礼物",
    "guitar": "一把吉他",
    "hamburger": "一个汉堡",
    "hammer": "一把锤子",
    "hat": "一顶礼帽",
    "house": "一座房子",
    "key": "一把钥匙",
    "kiwi": "一个猕猴桃",
    "ladybug": "一只瓢虫",
    "leaf": "一片枫叶",
    "lemon": "一个柠檬",
    "light bulb": "一个灯泡",
    "lion": "一头狮子",
    "magnet": "一块磁铁",
    "mushroom": "一个蘑菇",
    "octopus": "一只章鱼",
    "owl": "一只猫头鹰",
    "panda": "一只熊猫",
    "pear": "一个梨",
    "pencil": "一支铅笔",
    "penguin": "一只企鹅",
    "pig": "一头猪",
    "pineapple": "一个菠萝",
    "pizza": "一个披萨",
    "pumpkin": "一个南瓜",
    "robot": "一个机器人",
    "rocket": "一枚火箭",
    "shark": "一条鲨鱼",
    "snail": "一只蜗牛",
    "snowman": "一个雪人",
    "star": "一颗星星",
    "strawberry": "一颗草莓",
    "sun": "一个太阳",
    "tractor": "一辆拖拉机",
    "tree": "一棵松树",
    "trophy": "一座奖杯",
    "trumpet": "一把小号",
    "turtle": "一只乌龟",
    "umbrella": "一把伞",
    "unicorn": "一只独角兽",
    "watch": "一块手表",
    "watermelon": "一个西瓜",
    "whale": "一头鲸鱼",
}

BACKGROUNDS: dict[str | None, str] = {
    "blue": "蓝色",
    "brown": "棕色",
    "green": "绿色",
    "grey": "灰色",
    "pink": "粉色",
    "purple": "紫色",
    "white": "白色",
    "yellow": "黄色",
}


def caption(description: Description) -> str:
    """The description in simplified Chinese."""
    first, last = NAMES[description.names[0]], NAMES[description.names[-1]]
    background = f"{BACKGROUNDS[description.background]}背景上"
    match description.arrangement:
        case "one":
            return f"{background}有{first}"
        case "two":
            return f"{background}有两{first.removeprefix('一')}"
        case "left":
            return f"{background}，{first}在{last}的左边"
        case "above":
            return f"{background}，{first}在{last}的上方"
