import pytest

from triptych.alignment.encoding import continued, encode_answer, encode_pairs, joined, pair_prompt, resolve_template
from triptych.data.pair_checks import PairLengths
from triptych.data.pairs import Message, PreferencePair
from triptych.errors import DataError
from triptych.models.tiny import EOS_ID, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


def pair(chosen: str = "yes", rejected: str = "no", prompt: str = "Q?", *, finished: bool = True) -> PreferencePair:
    messages = () if finished else (Message(role="system", content="Be kind."), Message(role="user", content=prompt))
    return PreferencePair(
        id="a", prompt=prompt, chosen=chosen, rejected=rejected, messages=messages, is_finished=finished
    )


def test_auto_is_the_model_s_own_template_where_it_has_one() -> None:
    without = tiny_tokenizer()
    without.chat_template = None
    assert [resolve_template("auto", one) for one in (TOKENIZER, without)] == ["chat", "alpaca"]
    assert resolve_template("paper", TOKENIZER) == "paper"


def test_an_answer_ends() -> None:
    assert encode_answer("ab", TOKENIZER) == (*ids("ab"), EOS_ID)
    assert encode_answer("", TOKENIZER) == (EOS_ID,)
    # An EOS in the text is a token of it; another one follows.
    assert encode_answer("a<|im_end|>", TOKENIZER)[-2:] == (EOS_ID, EOS_ID)


def test_a_pair_is_its_prompt_with_both_answers() -> None:
    encoded = encode_pairs([pair()], "alpaca", TOKENIZER, 100)
    (one,) = encoded.pairs
    # A finished text stays as it is.
    assert one.group.prompt == ids("Q?")
    assert one.group.completions == ((*ids("yes"), EOS_ID), (*ids("no"), EOS_ID))
    assert not one.is_truncated
    assert encoded.n_without_room == 0
    assert (encoded.lengths[0].prompt, encoded.lengths[0].chosen, encoded.lengths[0].rejected) == (2, 4, 3)


def test_a_conversation_is_put_by_the_model_s_own_template() -> None:
    text = pair_prompt(pair(finished=False), "chat", TOKENIZER)
    assert text == ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n")
    assert "### Instruction:\nQ?" in pair_prompt(pair(finished=False), "alpaca", TOKENIZER)


@pytest.mark.parametrize(
    ("max_length", "chosen", "rejected", "is_truncated"),
    [(6, 4, 3, False), (5, 3, 3, True), (4, 2, 2, True), (3, 1, 1, True)],
)
def test_what_is_too_long_loses_its_end(max_length: int, chosen: int, rejected: int, is_truncated: bool) -> None:
    # A prompt of 2, answers of 4 and 3 with their EOS.
    (one,) = encode_pairs([pair()], "alpaca", TOKENIZER, max_length).pairs
    assert [len(completion) for completion in one.group.completions] == [chosen, rejected]
    assert one.is_truncated == is_truncated
    assert (one.group.completions[0][-1] == EOS_ID) == (chosen == 4)
    assert one.group.n_tokens <= 2 * max_length - 2


def test_a_prompt_without_room_is_left_out_and_counted() -> None:
    pairs = [pair(), pair(prompt="x" * 50).model_copy(update={"id": "b"})]
    encoded = encode_pairs(pairs, "alpaca", TOKENIZER, 10)
    assert [one.id for one in encoded.pairs] == ["a"]
    assert encoded.n_without_room == 1
    assert len(encoded.lengths) == 2
    with pytest.raises(DataError, match=r"none of 1 pairs leaves room .* max_length = 10 tokens; raise it"):
        encode_pairs(pairs[1:], "alpaca", TOKENIZER, 10)
    assert encode_pairs([], "alpaca", TOKENIZER, 10).pairs == []


PAIR_TOKENIZER = tiny_tokenizer(pairs=True)


def test_an_encoder_reads_what_its_tokenizer_joins() -> None:
    read = joined("Who?", ["me", ""], PAIR_TOKENIZER)
    assert (*read.prompt, *read.answers[0], *read.tail) == tuple(PAIR_TOKENIZER("Who?", "me")["input_ids"])
    assert read.prompt == (1, *ids("Who?"), EOS_ID)
    assert read.answers == (ids("me"), ())
    assert read.tail == (EOS_ID,)


def test_no_eos_follows_an_answer_that_broke_off_but_the_frame_does() -> None:
    read = continued("Who?", ["me", "you"], TOKENIZER, [True, False])
    assert read.answers == (ids("me"), (*ids("you"), EOS_ID))
    assert joined("Who?", ["me"], PAIR_TOKENIZER, [True]) == joined("Who?", ["me"], PAIR_TOKENIZER)


def test_an_answer_for_an_encoder_is_cut_before_what_closes_it() -> None:
    one, too_long = "yes", "x" * 50
    encoded = encode_pairs([pair(one, too_long)], "plain", PAIR_TOKENIZER, 12, "encoder")
    (found,) = encoded.pairs
    # <|im_start|> Q ? <|im_end|>, and of 12 tokens 7 for the answer and one to close it.
    assert found.group.prompt == (1, *ids("Q?"), EOS_ID)
    assert found.group.completions == ((*ids("yes"), EOS_ID), (*ids("x" * 7), EOS_ID))
    assert found.is_truncated
    assert encoded.lengths[0] == PairLengths(prompt=4, chosen=4, rejected=51)
    assert not encode_pairs([pair(one, "no")], "plain", PAIR_TOKENIZER, 12, "encoder").pairs[0].is_truncated


def test_an_encoder_reads_the_plain_question() -> None:
    asked = pair(finished=False)
    assert pair_prompt(asked, "auto", TOKENIZER, "encoder") == "Q?"
    assert pair_prompt(asked, "chat", TOKENIZER, "encoder") == pair_prompt(asked, "chat", TOKENIZER)
