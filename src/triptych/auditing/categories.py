"""What kind of answer a prompt asks for, by rules on its words: one short fact, an explanation, or anything else.

The starter prompts carry labels; prompts from elsewhere do not, and how long an answer should be depends on what was
asked. `RULES` is an ordered list of plain regular expressions; `agreement` says how well labels so found match given
ones. To add a cue: one pattern in the table of its rule.

Not here: models, languages other than English, and difficulty or topic.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from triptych.data.answer_checks import sentences
from triptych.records import Prompt

Category = Literal["factual", "explanation", "other"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

MAX_SENTENCES = 6
"""Of a longer instruction only the first two and the last two sentences are read: the rest is a passage to work on."""

MAX_WORDS = 80
"""Of a longer sentence only the first and the last 40 words are read, as two sentences."""


LAST_KNOWN_NUMBER = 84
"""Of a starter prompt, in its category, that was there when the rules were made."""


class Agreement(NamedTuple):
    """How well two labellings of the same prompts agree."""

    accuracy: float
    """Share of prompts with equal labels; NaN where there are none."""
    kappa: float
    """Cohen's; NaN where there are no prompts, or where chance alone must agree."""
    recall: dict[Category, float]
    """Of the prompts that the first labelling puts into a category, the share that the second does too; NaN of none."""


def classify(instruction: str, further: str = "") -> Category:
    """The category of a prompt; `further` is the text that it is to be applied to (Alpaca's `input`), or empty.

    * `factual` asks for one short fact: a name, a number, a date, a word.
    * `explanation` asks why or how, what something means or does, for a comparison, or to be walked through.
    * `other` asks to produce or change something: a text, a list, code, a plan, a label; or gives a role to play.

    An instruction that only hands over a question (`Answer the following question.`) is classified by its `further`,
    which is not read otherwise. The instruction is split into sentences, and courtesies (`could you please`) are taken
    off their beginnings. The first rule of `RULES` that any sentence matches decides: in short, commands to produce
    something, then what asks for an explanation, then what asks for a fact. Where none does, a question asks for a
    fact, and anything else is `other`.

    Limits: it knows words, not meaning. A command counts where a sentence begins with it, and a production before an
    explanation (`Write why ...` is other). `What is X?` asks for a fact where X begins with `the`, and otherwise for an
    explanation. In a long instruction only the beginning and the end are read (`MAX_SENTENCES`, `MAX_WORDS`), so that
    a passage in the middle does not decide; one at either end can. The rules were made on the odd ones of the first 252
    starter prompts. On the even ones, written along with them, they find 93 % of the labels, κ = 0.89; on the 240 that
    were written later (`is_new_to_the_rules`), 81 % (76 to 86 by Wilson's interval), κ = 0.72. The tests measure both.
    """
    requests = [_without_courtesy(sentence) for sentence in _asking(instruction)]
    if further.strip() and any(_HANDS_OVER.match(request) for request in requests):
        return classify(further)
    for rule in RULES:
        if any(pattern.search(request) for pattern in rule.patterns for request in requests):
            return rule.category
    return "factual" if any(request.rstrip("\"') ").endswith("?") for request in requests) else "other"


def agreement(labels: Sequence[Category], found: Sequence[Category]) -> Agreement:
    """The share of equal labels, Cohen's kappa, and the recall of each category.

        κ = (p - e) / (1 - e),   p = share of equal labels,   e = Σ_c share of c in labels · share of c in found

    Unit: 1 is perfect, 0 what chance gives to two labellers with these shares. Raises a `ValueError` for unequal
    lengths.

    Source: Cohen 1960.
    """
    if len(labels) != len(found):
        raise ValueError(f"labels must pair up: {len(labels)} labels, {len(found)} found")
    n = len(labels)
    if n == 0:
        return Agreement(math.nan, math.nan, dict.fromkeys(CATEGORIES, math.nan))
    hits = {name: sum(a == b == name for a, b in zip(labels, found, strict=True)) for name in CATEGORIES}
    given = {name: sum(label == name for label in labels) for name in CATEGORIES}
    p = sum(hits.values()) / n
    # In whole numbers, so that chance which must agree is exactly so.
    chance = sum(given[name] * sum(label == name for label in found) for name in CATEGORIES)
    kappa = math.nan if chance == n * n else (p - chance / n**2) / (1 - chance / n**2)
    recall = {name: hits[name] / given[name] if given[name] else math.nan for name in CATEGORIES}
    return Agreement(p, kappa, recall)


def is_new_to_the_rules(prompt: Prompt) -> bool:
    """Whether a starter prompt was written after the rules."""
    return int(prompt.id.rpartition("-")[2]) > LAST_KNOWN_NUMBER


# --- what is read -----------------------------------------------------------------------------------------------------

_COURTESY = re.compile(
    r"(?:(?:please|kindly|now|then|so|ok(?:ay)?|hi|hello|hey|first|also|and|next|but|task|instructions?|question|q)\b"
    r"|(?:can|could|would|will) you\b(?! (?:call|say))|i(?:'d| would) like you to\b|i (?:want|need) you to\b"
    r"|i(?:'d like| want) to know\b|help me\b(?! understand)|you (?:need|have|are asked|must|should)(?: to)?\b"
    r"|your (?:task|job) is to\b|let's\b(?! (?:play|pretend|imagine))|\W+)\W*"
)
_HANDS_OVER = re.compile(r"(?:answer|respond to|reply to) (?:the|this|my|these) (?:\w+ )?(?:question|query|riddle)s?\b")


def _asking(instruction: str) -> list[str]:
    """The sentences that may say what is wanted, in lower case and with straight quotes."""
    found = sentences(instruction.replace("’", "'").replace("‘", "'"))
    kept = found if len(found) <= MAX_SENTENCES else [*found[:2], *found[-2:]]
    return [" ".join(part).lower() for sentence in kept for part in _ends(sentence.split())]


def _ends(words: list[str]) -> list[list[str]]:
    half = MAX_WORDS // 2
    return [words] if len(words) <= MAX_WORDS else [words[:half], words[-half:]]


def _without_courtesy(sentence: str) -> str:
    while found := _COURTESY.match(sentence):
        sentence = sentence[found.end() :]
    return sentence


# --- the rules --------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """A sentence that one of its patterns matches puts its prompt into the category, unless an earlier rule did."""

    name: str
    """What the sentence does."""
    category: Category
    patterns: tuple[re.Pattern[str], ...]
    """Of a sentence in lower case, courtesies dropped."""


def _any(*phrases: str) -> str:
    """An alternative of the phrases, which are separated by commas and may be patterns, as whole words."""
    return rf"(?:{'|'.join(phrase.strip() for phrase in ','.join(phrases).split(','))})\b"


def _rule(name: str, category: Category, *patterns: str) -> Rule:
    return Rule(name, category, tuple(re.compile(pattern) for pattern in patterns))


_NUMBER = _any(r"\d+, a few, some, several, two, three, four, five, six, seven, eight, nine, ten, twelve, twenty")
_TO_ME = r"(?:(?:me|us|him|her|them) )?"
_SOME = r"(?:\w+ )?(?:\w+ )?"

_MAKES = _any(
    "produce, invent, come up with, think (?:of|up), make, design, devise, draw, put, set up, plan, prepare, develop",
    "craft, construct, build, implement, brainstorm, suggest, propose, recommend, advise, advertise, announce, start",
    "begin, reply, respond, greet, apologi[sz]e, congratulate, invite, thank, convince, persuade, argue, say",
    "simulate",
)
_CHANGES = _any(
    "shorten, lengthen, simplify, condense, trim, cut, edit, proofread, correct, fix, improve, polish, transform",
    "change, replace, remove, delete, insert, split, join, merge, combine, reverse, capitali[sz]e, repeat, copy, turn",
    "format, expand, extend, continue, refactor, debug, modify, adapt, revise, punctuate",
)
_ORDERS = _any(
    "sort, arrange, rearrange, order, reorder, rank, organi[sz]e, group, classify, categori[sz]e, label, tag, mark",
    "highlight, underline, extract, list, enumerate, pick, choose, select, rate, score, grade, match, decide, detect",
    "predict, (?:name|state) (?:\\w+ )?" + _NUMBER,
)
_HANDS = _any(
    "give, provide, offer, show, find, share, supply, get, send, i need, i want, i'd like, tell, sing, read",
)
_FORMATS = _any(
    "json, table, list, csv, array, markdown, xml, html, yaml, code, case, letters, voice, sentences?, questions?",
    "prose, bullets?, format, speech, tense, python, javascript",
)
_WORKS = _any(
    "poem, haiku, limerick, song, lyrics, story, tale, fable, scene, dialogue, joke, pun, riddle, speech, toast",
    "message, e-?mail, letter, reply, note, invitation, tweet, post, essay, article, paragraph, review, slogan",
    "tagline, motto, caption, headline, title, name ideas, advert(?:isement)?, ad, script, snippet, query, code",
    "program, function, regex, command, recipe, plan, schedule, itinerary, agenda, checklist, list, menu, quiz, table",
    "summary, translation, outline, ideas, rhymes?",
)
_ACCOUNTS = _any(
    "explanation, overview, definition, description, comparison, reason, account",
)
_LANGUAGES = _any(
    "bash, shell, sql, git, linux, unix, terminal, excel, css, html, python, javascript, java, regex",
)
_TEXTS = _any(
    "sentences?, statements?, review, e-?mail, text, message, passage, tweet, paragraph, comment, headline",
    "article, poem, code, premise, hypothesis",
)
_GIVEN = rf"(?:(?:this|these|the (?:following|given|above|below))\b|the {_TEXTS})"

_EXPLAINS = _any(
    "explain, explaining, explanation, elaborate, clarify, (?:walk|talk|take) (?:me|us) through, step[- ]by[- ]step",
    "step at a time, in (?:simple|plain|general|everyday|layman's) (?:terms|words|language|english), make sense of",
    "help me understand, (?:never|don't|do not|can't) (?:\\w+ )?(?:understand|understood|get|grasp)",
)
_SHOWS = _any(
    "describe, outline, discuss, show, illustrate, demonstrate, tell, teach, lay out, go over, follow, trace",
)
_HOW_IT_GOES = _any(
    "how, why, what happens, process, works?, cycle, differences?, steps, stages, role, causes?, effects?",
)
_TREATS = _any(
    "describe (?:the|what|your|\\w+ing), discuss, analy[sz]e, compare, contrast, distinguish, differentiate, define",
    "justify, interpret, lay out, tell (?:me|us) (?:more )?about, teach (?:me|us)",
)
_CAUSES = _any(
    "causes?, makes?, keeps?, happens?, happening, happened, goes on, going on, leads? to, drives?, triggers?",
    "prevents?, stops?, determines?, allows?, enables?, decides, role, effects?, impact, influence, stages, steps",
    "reasons?, benefits, (?:dis)?advantages, upsides, downsides, drawbacks, pros, purpose, the point of, significance",
    "importance, consequences, principles?, mechanism, function, challenges, ways, idea, meaning, process",
)
_MEANS = _any(
    "do, mean, represent, involve, refer to, happen, consist of",
)
_AMOUNTS = _any(
    "many, much, long, old, far, tall, high, deep, big, large, wide, heavy, fast, quick(?:ly)?, often, hot, cold",
    "warm, soon, late, early, thick, small, short, close, few, loud, bright, expensive",
)

_FINDS = _any(
    "name, state, spell, count, calculate, compute, solve, evaluate, add, subtract, multiply, divide, convert",
    "fill in, complete, finish, guess, look up, recall, work out, figure out, determine, identify, estimate, round",
    "measure",
)
_FACTS = _any(
    "names?, number, years?, dates?, day, month, word, term, total, sum, product, result, answer, capital, symbol",
    "formula, value, root, square root, average, mean, median, percentage, population, height, length, area",
    "perimeter, volume, distance, speed, price, age, author, inventor, currency, abbreviation, plural, singular",
    "opposite, antonym, synonym, past tense, cost, colou?r, country, city, language",
)

RULES: tuple[Rule, ...] = (
    _rule(
        "commands a product",
        "other",
        # Hardly anything but a command, also behind a clause: `For my blog, write ...`.
        rf"(?:^|[,:;] ){_any('write, draft, compose, create, generate, summari[sz]e, rewrite, re-?phrase, reword')}",
        rf"(?:^|[,:;] ){_any('paraphrase, translate')}",
        rf"^(?:{_MAKES}|{_CHANGES}|{_ORDERS})",
        r"^add (?!up\b|\d|(?:these|the) (?:numbers|prices|amounts))",
        rf"^(?:complete|finish|end) (?:the|this|my) (?:\w+ )?{_WORKS}",
        rf"^convert\b.* (?:to|into) .*{_FORMATS}",
        rf"^{_HANDS} {_TO_ME}(?:an? (?!{_SOME}{_ACCOUNTS}|beginner\b|child\b|friend\b)|{_NUMBER}|(?:ideas|tips)\b)",
        r"^(?:give|show|return|output|print) (?:it|them|this|that|the (?:same|following|text|sentence|list))\b",
    ),
    _rule(
        "names a product",
        "other",
        # `Birthday message for a colleague`, `A haiku about rain`; no question, and no verb but these few to be seen.
        rf"^(?:(?!wh|how|the |its |this |these |me |is |are |was |to )[\w'-]+ ){{0,4}}{_WORKS}(?!.*\?)"
        rf"(?:,? {_any('please, for, about, on, that, with, in, to, from, of, containing, using')}|[.:]|$)",
    ),
    _rule(
        "wants code",
        "other",
        rf"\b{_LANGUAGES} {_any('commands?, query, queries, expression, one-liner, snippet, script, selector')}",
        rf"\b{_any('code block, regular expression, one-?liner')}",
    ),
    _rule(
        "judges, condenses or labels a text",
        "other",
        rf"^(?:is|are|was|were|do|does|did|has|have|can|could|would|should|will) (?:you (?:call|say) )?{_GIVEN}",
        rf"\b(?:key|main|central) {_any('points?, ideas?, messages?, arguments?, takeaways?, themes?')}",
        rf"\b{_any('sentiment, gist, in a nutshell, (?:positive|negative) or (?:positive|negative), entails?')}",
        rf"\b{_any('(?:select|choose|pick) from, answer choices, available options, multi(?:ple)?[- ]choice')}",
        r"^(?:which|what) (?:\w+ )?(?:label|category|topic|title|headline|option)\b",
    ),
    _rule(
        "commands an explanation",
        "explanation",
        rf"\b{_EXPLAINS}",
        rf"^{_SHOWS} .*\b{_HOW_IT_GOES}",
        rf"^{_TREATS}",
        rf"^(?:give|provide) {_TO_ME}an? {_SOME}{_ACCOUNTS}",
    ),
    _rule(
        "gives a role or a scene",
        "other",
        rf"^{_any('you are, act (?:as|like), pretend, imagine, picture, role-?play, suppose, describe an?')}",
        r"^let's (?:play|pretend|imagine)\b",
    ),
    _rule(
        "asks why, how or what it means",
        "explanation",
        rf"\b{_any('why, how come, reasons? (?:for|behind), what is meant by, meaning of, pros and cons')}",
        rf"\bhow (?!{_AMOUNTS}|(?:do|would) (?:you|we|i) (?:say|spell|call)\b|(?:is|are) .*\b(?:called|said)\b)\w",
        rf"\b{_any('differ, differs, differences?, similarit(?:y|ies), versus, vs, (?:sets?|tells?) .*apart')}",
        rf"\bwhat(?:'s| is| are| was| were)? {_SOME}{_CAUSES}",
        rf"\bwhat (?:does|do|did|would|could|can) .*\b{_MEANS}",
        r"\bwhen (?:should|do|would) (?:i|we|you|one) (?:use|write|say|choose)\b",
        r"\b(?:is|does) it (?:really )?(?:matter|better|worth|safe)\b",
        # `What is inflation?`, `What is a black hole?`; but no sum, no riddle about a name, and nothing given.
        rf"\bwhat(?:'s| is| are) (?!.*(?:\d|\b{_any('called, named, known, made of, plus, minus, times')}))"
        rf"(?!{_any('the, this, these, that, my, your, it, one, another, left, a word')})(?:an? )?"
        r"[\w'-]+(?: [\w'-]+)?(?: [\w'-]+)?\?",
    ),
    _rule(
        "commands a fact",
        "factual",
        rf"^{_FINDS}",
        rf"\b{_any('give, tell, find, state, show, provide, i need, i want')} {_TO_ME}the (?:[\w-]+ )*?{_FACTS}",
        r"\b(?:tell|remind|know|wonder|forgot|forget|remember) (?:\w+ )?(?:who|which|when|where|what|whether|how)\b",
        rf"^(?:the )?(?:\w+est\b|most \w+|{_FACTS} (?:of|in|when)\b)",
    ),
)
"""In the order in which they are tried."""
