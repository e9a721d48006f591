"""Pairs without a problem, in many languages, as people write them: nothing may be found in them."""

from pathlib import Path

JOINER, NON_JOINER, WIDE_SPACE = "\u200d", "\u200c", "\u00a0"
FAMILY = f"\U0001f468{JOINER}\U0001f469{JOINER}\U0001f467"
RAINBOW = f"\U0001f3f3\ufe0f{JOINER}\U0001f308"
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
SENTENCES = [
    ("В комнате номер {n} стоит старый письменный стол.", "There is an old desk in room number {n}."),
    ("Купи, пожалуйста, USB-кабель и {n} ламп.", "Please buy a USB cable and {n} lamps."),
    ("彼は昨日、東京駅で切符を{n}枚買いました。", "Yesterday he bought {n} tickets at Tokyo station."),
    ("カフェでコーヒーを{n}杯飲んだ。", "I drank {n} cups of coffee at the café."),
    ("اشترى محمّد {n} كتب من المكتبة القديمة", "Mohammed bought {n} books at the old bookshop"),
    ("\u200fالكود هو ABC-{n} فقط\u200e", "The code is ABC-{n} only"),
    (f"می{NON_JOINER}خواهم {{n}} کتاب بخرم", "I want to buy {n} books"),
    (f"राम ने {{n}} क्{JOINER}षेत्र देखे और पढ़ा।", "Ram saw {n} fields and read about them."),
    ("मेरे पास {n} सेब और फल हैं।", "I have {n} apples and some fruit."),
    ("Hôm nay có {n} người đến thăm viện bảo tàng ở trung tâm thành phố.", "Today {n} people visited the museum in the centre of the city."),
    ("Der Bäcker an der Straße verkauft heute {n} süße Brötchen für müde Gäste.", "Today the baker in the street sells {n} sweet rolls to tired guests."),
    (f"Il a dit{WIDE_SPACE}: «{WIDE_SPACE}J’ai {{n}} très bonnes idées{WIDE_SPACE}»", "He said: “I have {n} very good ideas”"),
    ("Το καφενείο έχει {n} τραπέζια.", "The coffee house has {n} tables."),
    (f"Wir sind {{n}} {FAMILY}{RAINBOW}{SCOTLAND} und froh", f"There are {{n}} of us {FAMILY}{RAINBOW}{SCOTLAND} and we are glad"),
    ("ฉันมีหนังสือ {n} เล่ม\u200bที่บ้าน", "I have {n} books at home"),
    ("יֵשׁ לִי {n} סְפָרִים טוֹבִים", "I have {n} good books"),
    ("서울에는 {n}개의 큰 공원이 있습니다.", "There are {n} large parks in Seoul."),
]  # fmt: skip


def invent_rows(num_rows: int, first: int = 10) -> list[tuple[str, str]]:
    """Return so many different rows, the languages in turn."""
    rows = []
    for i in range(num_rows):
        source, target = SENTENCES[i % len(SENTENCES)]
        number = first + i // len(SENTENCES)
        rows.append((source.format(n=number), target.format(n=number)))
    return rows


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in rows), "utf-8")
    return path
