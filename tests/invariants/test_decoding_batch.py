"""A completion depends on its prompt, its strategy, its sample number and the seed: never on who shares its batch.

Tokens are compared one for one. Logits may differ by rounding, since matrix products of other shapes add up in another
order; in fp32 that is some 1e-6, and no two candidates of these models lie so close together.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from triptych.decoding import (
    Ancestral,
    Beam,
    Contrastive,
    DiverseBeam,
    Engine,
    Greedy,
    Job,
    Limits,
    MinP,
    Sampler,
    Stopping,
    Strategy,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    decode,
)
from triptych.decoding.search import SEARCHES
from triptych.models import LanguageModel
from triptych.models.tiny import tiny_gpt2, tiny_language_model, tiny_llama
from triptych.records import Generation, Prompt
from triptych.seeding import generator

LIMIT = 10
# From one token to most of the context, two of them alike up to their last.
TEXTS = ["a", "x" * 200, "It was " * 5, "It was " * 4 + "It is"]
PROMPTS = [Prompt(id=f"p{i}", instruction=text, prompt=text) for i, text in enumerate(TEXTS)]
ARMS: list[Strategy] = [
    Greedy(),
    Beam(width=4),
    DiverseBeam(width=4, groups=2),
    Contrastive(k=3, alpha=0.5),
    Ancestral(temperature=1.2),
    TopK(k=10),
    TopP(p=0.9),
    TopP(p=0.9, temperature=0.5),
    MinP(p=0.05),
    Typical(mass=0.8),
    TopNSigma(n=2.0),
]
JOBS = [
    Job(prompt, strategy, sample)
    for prompt in PROMPTS
    for strategy in ARMS
    for sample in range(2 if isinstance(strategy, Sampler) else 1)
]
Key = tuple[str, str, str, int]
Results = dict[Key, Generation]


class World:
    """A model on a path, with what it says when nothing is asked of the batch."""

    def __init__(self, model: Any, path: str) -> None:
        # Twenty tokens end a text, so that rows leave the batch and others take their place.
        self.lm: LanguageModel = dataclasses.replace(tiny_language_model(model), eos_ids=frozenset(range(2, 22)))
        self.path = path
        self.reference = self.run(JOBS)

    def run(self, jobs: Iterable[Job], max_rows: int | None = None) -> Results:
        engine = Engine(
            self.lm,
            max_new_tokens=LIMIT,
            seed=11,
            stopping=Stopping(block=2, threshold=3),
            limits=Limits(max_rows=max_rows),
            path=self.path,
        )
        return {(one.prompt_id, one.strategy, one.params, one.sample): one for one in engine.run(jobs)}

    def require_same(self, found: Results, keys: Iterable[Key] | None = None) -> None:
        expected = self.reference if keys is None else {key: self.reference[key] for key in keys}
        assert set(found) == set(expected)
        for key, one in found.items():
            other = expected[key]
            assert one.token_ids == other.token_ids, key
            assert (one.text, one.stop_reason) == (other.text, other.stop_reason)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert one.sampler_logprobs == pytest.approx(other.sampler_logprobs, abs=1e-4)
            assert one.score == pytest.approx(other.score, abs=1e-4)


WORLDS: dict[str, Callable[[], World]] = {
    "llama-fused": lambda: World(tiny_llama(3), "fused"),
    "llama-generic": lambda: World(tiny_llama(3), "generic"),
    "gpt2-generic": lambda: World(tiny_gpt2(3), "generic"),
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]()


def key_of(job: Job) -> Key:
    return job.prompt.id, job.strategy.name, job.strategy.params, job.sample


def shuffled(jobs: Sequence[Job], seed: int) -> list[Job]:
    return [jobs[i] for i in generator(seed, "order").permutation(len(jobs))]


def test_the_reference_is_worth_comparing_with(world: World) -> None:
    found = list(world.reference.values())
    assert len(found) == len(JOBS)
    assert {one.stop_reason for one in found} >= {"eos", "length"}
    assert len({one.token_ids for one in found}) > len(found) / 2


@pytest.mark.parametrize("max_rows", [7, 64])
def test_the_size_of_the_batch(world: World, max_rows: int) -> None:
    world.require_same(world.run(JOBS, max_rows))


@pytest.mark.parametrize("max_rows", [1, 2])
def test_the_smallest_batches(world: World, max_rows: int) -> None:
    # A search would get the rows it needs all the same.
    jobs = [job for job in JOBS if job.strategy.name not in SEARCHES and job.sample == 0]
    world.require_same(world.run(jobs, max_rows), map(key_of, jobs))


@pytest.mark.parametrize("max_rows", [6, 64])
def test_the_order_of_the_jobs(world: World, max_rows: int) -> None:
    world.require_same(world.run(JOBS[::-1], max_rows))


def test_scattered_jobs_of_one_prompt(world: World) -> None:
    # They read it several times.
    jobs = shuffled(JOBS, 0)[::2]
    world.require_same(world.run(jobs, 6), map(key_of, jobs))


@pytest.mark.parametrize("strategy", ARMS, ids=lambda strategy: strategy.label)
def test_the_presence_of_other_arms(world: World, strategy: Strategy) -> None:
    alone = [job for job in JOBS if job.strategy == strategy]
    world.require_same(world.run(alone), map(key_of, alone))


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_the_presence_of_other_prompts(world: World, index: int) -> None:
    alone = [job for job in JOBS if job.prompt == PROMPTS[index]]
    world.require_same(world.run(alone), map(key_of, alone))


def test_each_job_by_itself(world: World) -> None:
    for job in shuffled(JOBS, 1)[:12]:
        world.require_same(world.run([job]), [key_of(job)])


def test_a_shared_prompt_equals_separate_ones(world: World) -> None:
    jobs = [job for job in JOBS if job.prompt == PROMPTS[1]]
    apart: Results = {}
    for part in (jobs[::3], jobs[1::3], jobs[2::3]):
        apart |= world.run(part)
    world.require_same(apart, map(key_of, jobs))
    # In one run, but read once for each strategy: jobs of another prompt lie between.
    others = [job for job in JOBS if job.prompt == PROMPTS[0]][: len(jobs)]
    mixed = [one for pair in zip(jobs, others, strict=True) for one in pair]
    world.require_same(world.run(mixed), map(key_of, mixed))


def test_a_sample_does_not_depend_on_how_many_there_are(world: World) -> None:
    many = [Job(PROMPTS[2], TopP(p=0.9), sample) for sample in range(20)]
    found = world.run(many, 6)
    assert len({one.token_ids for one in found.values()}) > 10
    firsts = [job for job in many if job.sample < 2]
    world.require_same({key: one for key, one in found.items() if key[3] < 2}, map(key_of, firsts))


def test_the_name_of_a_prompt_and_the_seed_are_all_that_samples_share(world: World) -> None:
    # The same text under another name draws other numbers; what does not draw does not care.
    renamed = Prompt(id="other", instruction=TEXTS[1], prompt=TEXTS[1])
    for strategy in (Ancestral(temperature=1.2), Greedy(), Beam(width=4)):
        (found,) = world.run([Job(renamed, strategy)]).values()
        same = found.token_ids == world.reference[key_of(Job(PROMPTS[1], strategy))].token_ids
        assert same == (not isinstance(strategy, Sampler))


def test_decode_is_the_engine(world: World) -> None:
    found = decode(
        world.lm,
        PROMPTS,
        ARMS,
        max_new_tokens=LIMIT,
        samples=2,
        seed=11,
        stopping=Stopping(block=2, threshold=3),
        path=world.path,
    )
    assert [key_of(job) for job in JOBS] == [(one.prompt_id, one.strategy, one.params, one.sample) for one in found]
    world.require_same({key_of(job): one for job, one in zip(JOBS, found, strict=True)})
