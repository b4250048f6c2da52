import pytest

from triptych.decoding.pieces import piece_of, token_pieces
from triptych.models.tiny import EOS_ID, tiny_tokenizer

BYTE_LEVEL, SENTENCE_PIECE = frozenset({"ByteLevel"}), frozenset({"Sequence", "Replace", "ByteFallback", "Fuse"})


class TestPieces:
    def test_bytes_of_split_characters_come_back_together(self) -> None:
        tokenizer = tiny_tokenizer()
        text = "héllo\n€ \x7f"
        ids = tokenizer(text)["input_ids"]
        pieces = token_pieces(tokenizer, ids)
        assert "".join(pieces[token] for token in ids).encode("utf-8", "surrogateescape") == text.encode()

    def test_special_tokens_keep_their_names_and_unknown_ids_have_none(self) -> None:
        assert token_pieces(tiny_tokenizer(), [10**6, EOS_ID, EOS_ID]) == {EOS_ID: "<|im_end|>"}

    @pytest.mark.parametrize(
        ("name", "kinds", "piece"),
        [
            ("Ġthe", BYTE_LEVEL, " the"),
            ("Ċ", BYTE_LEVEL, "\n"),
            ("âĤ", BYTE_LEVEL, "\udce2\udc82"),
            # A name outside the byte alphabet is the text itself.
            ("日", BYTE_LEVEL, "日"),
            ("▁the", SENTENCE_PIECE, " the"),
            ("<0x0A>", SENTENCE_PIECE, "\n"),
            ("<0xE2>", SENTENCE_PIECE, "\udce2"),
            ("▁the", frozenset(), "▁the"),
        ],
    )
    def test_names_of_either_kind_of_tokenizer(self, name: str, kinds: frozenset[str], piece: str) -> None:
        assert piece_of(name, kinds) == piece
