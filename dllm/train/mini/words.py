"""Words, names and numbers nobody listed: made up and real ones, split into training and held out.

A word (in lower case) or a number is held out by a hash of its text: training never shows one of
these in the place of an item, a name or an operand, evaluation shows no others.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Callable
from functools import cache

HELD_OUT_SHARE = 10  # one word in this many is kept for evaluation
LONGEST = 12  # letters of a word
ALWAYS = 20  # numbers below this are never held out: there are too few of them

NOUNS = tuple(
    """apple apricot banana cherry fig grape kiwi lemon lime mango melon olive orange peach pear
    plum date berry quince guava papaya coconut almond walnut acorn chestnut pecan peanut bear cat
    cow crow deer dog duck fox goat hare horse lion mouse owl seal wolf tiger zebra panda otter
    badger rabbit turtle lizard eagle falcon pigeon sparrow salmon trout shark whale dolphin spider
    beetle ant bee wasp moth amber black blue brown coral cream gold green grey ivory pink purple
    red silver white yellow violet scarlet axe bolt brush chisel clamp drill file hammer knife
    ladder nail pliers rope saw screw wrench shovel bucket bowl cup fork glass jar kettle lid mug
    oven pan plate pot sieve spoon tray whisk napkin table chair lamp clock shirt book bag coat
    ball desk hat sofa carpet curtain mirror pillow blanket candle window door garden fence beach
    cliff cloud desert forest hill island lake moon ocean rain river sand snow star wind storm
    valley mountain meadow swamp thunder bell cello drum flute gong guitar harp horn lute oboe organ
    piano tuba viola violin trumpet ankle arm back chin ear elbow eye foot hand heart knee leg neck
    nose thumb toe shoulder belt boot cap cloak dress glove jacket robe scarf shoe skirt sock vest
    button zipper barge bike boat bus canoe car ferry jeep plane raft ship sled taxi train tram van
    truck wagon bridge tunnel road street market school hospital library museum theatre station
    airport hotel kitchen bakery office factory farm village city town castle church tower palace
    bread butter cheese milk honey sugar salt pepper rice pasta soup salad pizza cake cookie coffee
    tea juice water wine beer onion garlic carrot potato tomato pumpkin spinach lettuce cabbage bean
    pencil paper ruler eraser notebook letter stamp envelope package ticket wallet key phone laptop
    keyboard screen camera radio battery cable engine wheel brake pedal basket bottle barrel box
    chain diamond dragon dream engineer feather flag flower game ghost giant hunter idea jewel
    journey jungle king queen knight kingdom legend machine magic medal memory message metal mind
    music neighbor number pirate planet poem prince puzzle question rocket sailor season secret
    shadow signal soldier song spirit spring square stone story summer sunset sword teacher
    thread treasure tree triangle uncle universe vector village voice volcano winter wizard year
    zone quiz quick quiet happy brave clever gentle honest jolly kind lively proud silly
    tidy""".split()
)
NAMES = tuple(
    """Alice Bob Carol David Emma Frank Grace Henry Isabel Jack Karen Liam Maria Nathan Olivia
    Peter Quinn Rachel Steven Teresa Ursula Victor Wendy Xavier Yvonne Zachary Ada Ali Ana Ben Eva
    Finn Gus Ida Ivan Kim Lena Leo Mia Nina Noah Omar Pia Rosa Sam Tom Uma Vera Zoe Max Ann Lea Jon
    Ray Amy
    Dan Nia Ravi Lina Hugo Yuki Ines Karl Sofia Lucas Ethan Chloe Aaron Bella Diego Elena Felix
    Hannah Igor Julia Kevin Laura Marco Nora Oscar Paula Robert Sarah Thomas Vincent William Anna
    John Mary Paul Linda Mark Susan James Helen George Ruth Simon Martha Adam Clara Daniel Esther
    Fatima Gabriel Hassan Ingrid Jamal Keiko Lars Mei Nikolai Olga Pedro Priya Rahul Sven Tariq Wei
    Zeynep Bjorn Chen Dmitri""".split()
)
CITIES = tuple(
    """Oslo Rome Paris Lima Cairo Delhi Tokyo Berlin Madrid Dublin Vienna Athens Quito Seoul Boston
    Lagos London Lisbon Prague Warsaw Moscow Munich Hamburg Zurich Geneva Milan Naples Venice
    Florence Barcelona Seville Porto Brussels Antwerp Amsterdam Stockholm Helsinki Copenhagen Bergen
    Reykjavik Kyiv Budapest Sofia Istanbul Ankara Beirut Tehran Mumbai Chennai Bangkok Hanoi Manila
    Jakarta Sydney Perth Auckland Nairobi Accra Tunis Havana Bogota Santiago Montreal Toronto
    Chicago Denver Dallas Houston Seattle Phoenix Atlanta Miami Austin Portland""".split()
)
_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def is_held_out(text: str) -> bool:
    """Whether a word or a number belongs to evaluation (a fixed hash of its lower case)."""
    return zlib.crc32(f"mini/{text.lower()}".encode()) % HELD_OUT_SHARE == 0


@cache
def _followers() -> dict[str, str]:
    """Letters behind each pair of letters of the real words, as often as there ("$": none)."""
    found: defaultdict[str, str] = defaultdict(str)
    for word in (*NOUNS, *map(str.lower, NAMES), *map(str.lower, CITIES)):
        padded = f"^^{word}$"
        for i in range(len(word) + 1):
            found[padded[i : i + 2]] += padded[i + 2]
    return dict(found)


class WordSource:
    """Draws of one split; `rng` decides them all. held_out: evaluation's."""

    def __init__(self, rng: random.Random, held_out: bool = False) -> None:
        self.rng, self.held_out = rng, held_out

    def _ours(self, text: str) -> bool:
        return is_held_out(text) == self.held_out

    def _syllables(self) -> str:
        pairs = (
            self.rng.choice(_CONSONANTS) + self.rng.choice(_VOWELS)
            for _ in range(self.rng.randint(1, 5))
        )
        return "".join(pairs) + self.rng.choice(("", self.rng.choice(_CONSONANTS)))

    def _english_like(self) -> str:
        word = "^^"
        while len(word) < LONGEST + 2:
            letter = self.rng.choice(_followers()[word[-2:]])
            if letter == "$":
                break
            word += letter
        return word[2:]

    def _letters(self) -> str:
        return "".join(self.rng.choices(_ALPHABET, k=self.rng.randint(1, 9)))

    def made_up(self) -> str:
        """A word of letters in patterns of every kind, in lower case."""
        while True:
            make = self.rng.choices(
                (self._english_like, self._syllables, self._letters), weights=(5, 3, 2)
            )[0]
            word = make()
            if 1 <= len(word) <= LONGEST and self._ours(word):
                return word

    def _real(self, pool: tuple[str, ...]) -> str:
        while True:
            word = self.rng.choice(pool)
            if self._ours(word):
                return word

    def word(self) -> str:
        """A thing: real in three draws of ten."""
        return self._real(NOUNS) if self.rng.random() < 0.3 else self.made_up()

    def cased(self, word: str) -> str:
        """The word as people type it: mostly as it is, sometimes with capitals."""
        chance = self.rng.random()
        return word.capitalize() if chance < 0.12 else word.upper() if chance < 0.16 else word

    def name(self) -> str:
        """A first name."""
        return self._real(NAMES) if self.rng.random() < 0.4 else self._capital()

    def city(self) -> str:
        return self._real(CITIES) if self.rng.random() < 0.4 else self._capital()

    def _capital(self) -> str:
        while len(word := self.made_up()) < 2:
            pass
        return word.capitalize()

    def number(self, least: int, most: int) -> int:
        """A whole number of the split, of any count of digits that the range allows."""
        digits = range(len(str(max(least, 0))), len(str(most)) + 1)
        while True:
            size = self.rng.choice(digits)
            low, high = max(least, 10 ** (size - 1) if size > 1 else 0), min(most, 10**size - 1)
            if low > high:
                continue
            value = self.rng.randint(low, high)
            few = most < 10 * ALWAYS if self.held_out else value < ALWAYS
            if few or self._ours(str(value)):
                return value

    def different(self, draw: Callable[[], object], count: int) -> list[str]:
        """`count` different results of a draw, as text."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[str(draw())] = None
        return list(found)
