"""The English text that the demo calibrates on and the text that it is judged on.

Calibration sentences are drawn from templates of many registers with a fixed seed, so that every
run sees the same ones. The evaluation sentences in held_out.txt were written one by one and share
no template with them.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

SEED = 20250211

SLOTS: dict[str, list[str]] = {
    "person": [
        "Maria Fernandez", "Dr. Okafor", "Liam O'Connor", "Mrs. Petrova", "Yuki Tanaka",
        "Ahmed Hassan", "Professor Lindqvist", "Captain Reyes", "Grace Whitfield", "Tomasz",
        "Priya Raman", "old Mr. Bellweather", "Zanele", "Hiroshi", "Ingrid Sørensen",
        "Judge Abernathy", "Chloe", "Mateo", "the Hendersons", "Fatima al-Zahra",
    ],
    "job": [
        "nurse", "civil engineer", "violinist", "beekeeper", "software developer", "goalkeeper",
        "tax inspector", "marine biologist", "baker", "night-shift guard", "crane operator",
        "translator", "watchmaker", "geologist", "paramedic", "high-school chemistry teacher",
    ],
    "place": [
        "Lisbon", "the harbour of Rotterdam", "rural Kansas", "Nairobi", "the Scottish Highlands",
        "São Paulo", "a suburb of Osaka", "the old library", "Marseille", "northern Alberta",
        "the river delta", "Reykjavik", "downtown Chicago", "the Atacama desert", "Kraków",
        "the third-floor laboratory", "Hanoi", "a village near Lake Como", "Wellington",
    ],
    "company": [
        "Northwind Logistics", "Helix Therapeutics", "Aurora Steel", "the Baltic Grain Company",
        "Quillfeather Press", "Sunridge Solar", "TriPoint Insurance", "Kestrel Airways",
        "Lumen & Sons", "Greenfield Dairy", "Orbital Freight Ltd.", "Zephyr Motors",
    ],
    "money": [
        "$4.2 million", "€380,000", "nearly 12 billion yen", "£75", "$1,299.99", "a few cents",
        "more than two billion dollars", "€17.50 per hour", "some 40,000 rupees",
    ],
    "number": [
        "three", "17", "250", "forty-two", "1,024", "6", "99", "eleven", "5", "60,000",
        "seven hundred", "128", "2,048", "ninety", "33", "4,096",
    ],
    "quantity": ["0.05", "3.14159", "1e-6", "two thirds", "-40", "6.02e23", "the square root of 2"],
    "percent": ["2.5%", "18 percent", "a third", "0.3%", "87%", "nearly half", "150 percent"],
    "date": [
        "on 3 March 1987", "last Tuesday", "in the spring of 2019", "on New Year's Eve",
        "by the end of the fiscal year", "at 6:45 a.m.", "during the drought of 1976",
        "in the early 2000s", "next Friday afternoon", "on July 14th", "in November",
        "a fortnight ago", "before the storm of 1953", "sometime after midnight",
    ],
    "animal": [
        "a grey heron", "the neighbour's cat", "two stray dogs", "a colony of bats",
        "an elderly tortoise", "wild boars", "a humpback whale", "swarms of locusts", "an octopus",
    ],
    "food": [
        "lentil soup", "sourdough bread", "grilled mackerel", "mango chutney", "cold noodles",
        "roast chestnuts", "a plum tart", "spicy goat stew", "buttered toast", "dumplings",
    ],
    "object": [
        "rusty bicycle", "brass telescope", "leaking kettle", "handwritten ledger", "spare key",
        "cello", "solar panel", "broken umbrella", "wooden ladder", "box of photographs",
        "thermostat", "fishing net", "graphics card", "porcelain vase", "train ticket",
    ],
    "weather": [
        "heavy rain", "a late frost", "dense fog", "gale-force winds", "an unusual heat wave",
        "drizzle", "the first snow", "thunderstorms", "a clear and windless night",
    ],
    "system": [
        "the message queue", "a PostgreSQL replica", "the load balancer", "our build server",
        "the garbage collector", "the recommendation model", "a legacy COBOL program",
        "the payment gateway", "the TLS certificate", "the Kubernetes scheduler", "the cache",
        "the file system", "the firmware of the sensor", "the compiler's register allocator",
    ],
    "fault": [
        "ran out of memory", "returned HTTP 503", "deadlocked under load", "dropped every packet",
        "silently truncated the input", "expired at midnight UTC", "leaked file descriptors",
        "overflowed a 32-bit counter", "failed its health check", "took 900 ms instead of 9",
    ],
    "remedy": [
        "adding an index", "rolling back to version 2.8.1", "halving the batch size",
        "restarting it twice", "replacing the mutex with an atomic", "pinning the dependency",
        "raising the timeout to 30 seconds", "deleting the stale lock file", "sharding by user id",
    ],
    "science": [
        "the half-life of the isotope", "protein folding", "the orbit of the comet",
        "photosynthesis in deep shade", "the migration of monarch butterflies",
        "superconductivity near room temperature", "the spectrum of a dying star",
        "bacterial resistance to penicillin", "ocean acidification", "the covariance matrix",
        "plate tectonics", "the gut microbiome", "entropy in a closed system", "prime gaps",
    ],
    "finding": [
        "is far slower than models predict", "depends on temperature in a surprising way",
        "cannot be explained by chance alone", "was measured to within 0.02%",
        "doubles roughly every eighteen months", "follows a power law with exponent 2.3",
        "had been misread for decades", "varies between hospitals", "peaks just before dawn",
    ],
    "feeling": [
        "relieved", "a bit embarrassed", "furious", "quietly proud", "homesick", "bored stiff",
        "over the moon", "suspicious", "too tired to argue", "hopeful",
    ],
    "verb_past": [
        "repaired", "sold", "misplaced", "inherited", "painted", "borrowed", "photographed",
        "dismantled", "smuggled", "auctioned off", "returned", "polished",
    ],
    "event": [
        "the election", "the chess tournament", "a dock workers' strike", "the wedding",
        "the cup final", "the product launch", "an earthquake of magnitude 6.1", "the audit",
        "the school play", "the trade summit", "the power cut", "the harvest festival",
    ],
    "topic": [
        "mortgage rates", "opera", "vaccines", "the rules of cricket", "Stoic philosophy",
        "urban beekeeping", "medieval trade routes", "jazz harmony", "tide tables",
        "second-hand cars", "machine translation", "growing tomatoes", "copyright law",
    ],
    "body": ["left knee", "lower back", "right ear", "shoulder", "wrist", "stomach", "throat"],
    "time": ["ten minutes", "an hour and a half", "three weeks", "45 seconds", "two semesters",
             "four days", "most of the winter", "half a century"],
    "adjective": ["remarkable", "tedious", "overpriced", "brilliant", "forgettable", "unsettling",
                  "delightful", "clumsy", "sincere", "noisy", "spotless", "uneven"],
}  # fmt: skip

TEMPLATES: dict[str, list[str]] = {
    "news": [
        "{company} said {date} that it would invest {money} in a new plant near {place}, creating"
        " {number} jobs over the next decade despite weak demand.",
        "{place} - Residents were told to stay indoors {date} after {weather} damaged"
        " {number} homes and cut power to {percent} of the region.",
        "Shares of {company} fell {percent} after its chief executive, {person}, stepped down"
        " amid questions about {money} in undeclared payments.",
        "Lawmakers in {place} voted {number} to 61 to delay {event}, which critics had called"
        " a waste of public funds.",
        "Rescue teams found the missing {job} alive {date}, {time} after {event}; doctors say the"
        " {body} injury is not serious.",
        "Turnout at {event} rose {percent} compared with four years ago, officials in {place}"
        " announced, though several districts have yet to report.",
    ],
    "technical": [
        "When {system} {fault}, the on-call engineer fixed it by {remedy}, but the post-mortem"
        " blames a missing test.",
        "Warning: {system} {fault} at line {number}; see the log for the full stack trace and"
        " consider {remedy}.",
        "To reduce latency, we profile the hot path first, find that {system} {fault}, and only"
        " then think about {remedy}.",
        "Each worker holds {number} buffers of 64 KiB, so {system} needs at most 1.5 GB, provided"
        " that nothing else {fault}.",
        "def retry(n={number}): the decorator sleeps 2**n seconds, unless {system} {fault}.",
        "The patch replaces a quadratic loop with a hash table; on {number} records the run time"
        " drops from {time} to under a second.",
        "INSERT INTO orders (id, total) VALUES ({number}, 19.95) failed because {system} {fault}.",
    ],
    "science": [
        "We show that {science} {finding}, using {number} samples collected near {place}.",
        "A long-standing puzzle is why {science} {finding}; here, {person} and colleagues propose"
        " an answer that can be tested with existing instruments.",
        "Contrary to the textbook account, {science} {finding} (p < 0.01, n = 384).",
        "If {science} indeed {finding}, then earlier estimates are wrong by {percent}, and the"
        " consequences for climate policy would be considerable.",
        "The apparatus consists of a vacuum chamber, a laser at 1064 nm and a {object}; noise is"
        " dominated by vibrations from {event}.",
    ],
    "conversation": [
        "Hey, did you see what {person} did with the {object}? I'm still {feeling}.",
        "\"I never liked {food},\" said {person}, \"but yours is {adjective}, honestly.\"",
        "Sorry I'm late, {weather} held up the bus for {time} and then I forgot the {object}.",
        "lol no way, {person} moved to {place}?? since when",
        "Could you pick up {food} and a {object} on your way home? I'll pay you back, promise.",
        "Well, my {body} hurts, the {job} next door practises all night, and I feel {feeling}.",
        "Don't worry about it. {person} {verb_past} it ages ago and nobody noticed.",
        "Ugh, {event} again... can we please talk about {topic} instead?",
    ],
    "question": [
        "How long does it take to get from {place} to {place} by train?",
        "Who {verb_past} the {object} that used to stand in the hall?",
        "Why would anyone pay {money} for {food}?",
        "What is the best way to learn about {topic} without a teacher?",
        "Is it true that {animal} can survive for {time} without water?",
        "Which is larger, {quantity} or {quantity}?",
        "Did {person} mention {event} before leaving {place}?",
        "Can {system} be replaced without downtime?",
        "Where can I read more about {science}?",
    ],
    "narrative": [
        "{date}, {person} walked along the canal with a {object} under one arm, thinking of"
        " {place}, of {food}, and of everything that had been left unsaid.",
        "Nobody in {place} remembered who had {verb_past} the {object}, yet every child knew the"
        " story of the {job} who came back after {time}, {feeling} and alone.",
        "The door creaked. Outside there was {weather}, and beneath the lamp stood {animal},"
        " perfectly still, as if it had been waiting since {event}.",
        "{person} had been a {job} for so long that retirement felt like {weather}: expected,"
        " inevitable, and somehow a personal insult.",
        "By the time the {job} reached {place}, {animal} had eaten all the {food}, and the letter"
        " was nowhere to be found.",
    ],
    "review": [
        "The {object} arrived {date}, looks {adjective}, and broke after {time}; two stars.",
        "A {adjective} novel about a {job} from {place} who talks mostly about {topic}. I could"
        " not put it down, and then, around page {number}, I did.",
        "Great {food}, {adjective} service, but {money} for parking is absurd.",
        "I have owned this {object} for {time} and would buy it again, even at {money}.",
    ],
    "instruction": [
        "Preheat the oven to 180 °C, fold in {number} grams of butter, cover with {food}, and bake"
        " for {time} or until golden.",
        "Before you open the {object}, disconnect the power, wait {time}, and wear gloves.",
        "Take one tablet every {time} with food; do not drive if your {body} feels numb.",
        "Turn left at {place}, continue for {number} metres, and ask the {job} for the {object}.",
        "Step {number}: attach part B to the {object} with the short screws, then repeat.",
    ],
    "reference": [
        "{topic}, in the narrow sense, has been practised in {place} since {event}; the term was"
        " first recorded {date}.",
        "Under section {number} of the act, a {job} who has {verb_past} a {object} worth more than"
        " {money} must notify the authority within {time}.",
        "The museum in {place} holds {number} manuscripts on {topic}, of which {percent} have been"
        " digitized.",
        "A {job} typically earns {money} a month, {percent} more than in {place}.",
    ],
    "short": [
        "{person} agreed.", "Closed for {event}.", "{number} of them.", "Too much {food}!",
        "{weather}, mostly.", "Never again.", "See you {date}.", "{topic}?", "Nice {object}.",
        "Error: {system} {fault}.", "Thanks, {person}!",
    ],
}  # fmt: skip


def calibration_sentences(count: int = 520) -> list[str]:
    """`count` varied English passages of one to three sentences; always the same ones."""
    generator = random.Random(SEED)
    genres = sorted(TEMPLATES)
    passages: list[str] = []
    seen: set[str] = set()
    while len(passages) < count:
        genre = genres[len(passages) % len(genres)]
        passage = _fill(generator, generator.choice(TEMPLATES[genre]))
        if genre != "short":
            for _ in range(generator.choice((0, 0, 0, 0, 1, 2))):
                passage += " " + _fill(generator, generator.choice(TEMPLATES[genre]))
        if passage not in seen:
            seen.add(passage)
            passages.append(passage)
    return passages


def held_out_sentences() -> list[str]:
    """The evaluation sentences, none of which is used for calibration."""
    text = (Path(__file__).parent / "held_out.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def _fill(generator: random.Random, template: str) -> str:
    """The template with every slot filled, each time with something else."""
    used: set[str] = set()

    def choose(slot: re.Match[str]) -> str:
        choice = generator.choice([word for word in SLOTS[slot.group(1)] if word not in used])
        used.add(choice)
        return choice

    filled = re.sub(r"\{(\w+)\}", choose, template)
    filled = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", filled)
    return filled[0].upper() + filled[1:] if template.startswith("{") else filled
