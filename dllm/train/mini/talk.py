"""Greetings, what the model can do, and a short honest refusal of everything else."""

from __future__ import annotations

from dllm.train.mini.dialogue import Dialogue, sloppy
from dllm.train.mini.words import WordSource

HELLO = "Hello! I work on lists, small sums, JSON, tables and short facts."
ABILITIES = (
    "I can copy, sort, reverse and change lists, add and subtract numbers up to 999, "
    "write JSON, tables and CSV, and find names and numbers in short texts."
)
REFUSAL = "I only know lists, small sums, JSON, tables and short facts."
WELCOME = "You are welcome."
BYE = "Goodbye!"

GREETINGS = ("Hi", "Hello", "Hey", "hi there", "Hello there", "Good morning", "Good evening", "hey",
             "Good afternoon", "hello!", "Hi!", "Hey there", "Greetings", "How are you?", "hiya",
             "yo", "Hello, how are you?", "Hi, I am {name}", "Hello, my name is {name}",
             "hello {name}")  # fmt: skip
ASKED = ("What can you do?", "Help", "help me", "Who are you?", "What are you?",
         "What do you know?", "How can you help me?", "What can I ask you?",
         "Which tasks can you do?", "?", "What are your abilities?", "Tell me what you can do",
         "How does this work?", "what can i do here", "Give me an example",
         "what do you do")  # fmt: skip
THANKS = (
    "Thanks",
    "Thank you",
    "thank you!",
    "Great, thanks",
    "thx",
    "Thanks a lot",
    "Many thanks",
)
PARTING = ("Bye", "Goodbye", "See you", "bye bye", "Good night", "See you later", "cya")

FOREIGN = ("What is the capital of {city}?", "Who is {name}?", "Who wrote {word} and {word}?",
           "Tell me a joke", "Write a poem about {word}", "Write a story about a {word}",
           "Translate {word} into French", "Translate this into German: the {word} is {word}",
           "Explain {word}", "How do I cook {word}?", "What is the meaning of {word}?",
           "Summarize the history of {city}", "Write an essay about {word}", "What time is it?",
           "What is the weather in {city}?", "Should I buy a {word}?", "Why is the {word} {word}?",
           "Is {word} good for me?", "Recommend a {word}", "Who won the {word} in {number}?",
           "Where is {city}?", "When was {name} born?", "How far is {city} from {city}?",
           "What do you think about {word}?", "Do you like {word}?", "Are you a {word}?",
           "Write an email to {name} about {word}", "Sing a song", "How do you make {word}?",
           "What is a {word}?", "What does {word} mean?", "Define {word}",
           "Give me advice about {word}", "I feel {word} today", "My {word} is broken",
           "Why do {word}s {word}?", "How old are you?", "Where do you live?", "Can you see me?",
           "Do you have a {word}?", "Play a game with me", "Write code for a {word}",
           "Fix this code: {word}({word})", "Solve x + {number} = y", "Book a hotel in {city}",
           "What is the best {word}?", "Compare {word} and {word}",
           "Continue the story: the {word} went to {city}", "Who is the president of {city}?",
           "How many people live in {city}?", "What happened in {number}?", "Name a famous {word}",
           "What rhymes with {word}?", "Spell {word}", "Is it true that {word}s {word}?",
           "What is the square root of {number}?", "Draw a {word}", "Show me a picture of a {word}",
           "Open the {word}", "Call {name}", "Remind me to {word}", "Set an alarm",
           "Search for {word}", "Buy {word}", "{word}", "{word} {word}",
           "{word} {word} {word} {word}", "I want to {word}", "I need a {word} for my {word}",
           "Let's talk about {word}", "Tell me about {word}", "Tell me about {city}",
           "Teach me {word}", "Describe a {word}", "What is love?", "Which {word} is the largest?",
           "How does a {word} work?", "Why?", "Really?", "ok", "yes", "no", "What did {name} say?",
           "Who invented the {word}?", "Can you help me with my {word}?", "blah blah {word}",
           "Write a letter to {name}", "What are the {word}s of {city}?",
           "Convert {number} {word}s to {word}s", "How much is a {word}?", "What is {big} * {big}?",
           "{big} + {big}", "Calculate {big} / {number}", "What day is it?", "When is {word}?",
           "Give me {number} {word}s", "List {number} kinds of {word}", "Make a plan for {word}",
           "What color is {word}?", "How tall is {name}?", "Guess my {word}")  # fmt: skip


def make(words: WordSource) -> Dialogue:
    """A turn of small talk."""
    rng = words.rng
    wordings, answer = rng.choices(
        ((GREETINGS, HELLO), (ASKED, ABILITIES), (THANKS, WELCOME), (PARTING, BYE)),
        weights=(4, 4, 1, 1),
    )[0]
    text = rng.choice(wordings).format(name=words.name())
    return Dialogue("talk", ((text if rng.random() < 0.5 else sloppy(rng, text), answer),))


def make_foreign(words: WordSource) -> Dialogue:
    """A question that is none of the model's business."""
    rng = words.rng
    template = rng.choice(FOREIGN)
    while "{word}" in template:
        template = template.replace("{word}", words.word(), 1)
    while "{city}" in template:
        template = template.replace("{city}", words.city(), 1)
    while "{big}" in template:
        template = template.replace("{big}", str(rng.randint(1000, 99_999)), 1)
    text = template.format(name=words.name(), number=words.number(2, 999))
    return Dialogue("refuse", ((sloppy(rng, text), REFUSAL),))
