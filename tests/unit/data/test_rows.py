from triptych.data.rows import dealt, keys_of


def test_dealing_takes_turns() -> None:
    items = [("other", 1), ("other", 2), ("other", 3), ("factual", 1), (None, 1), ("factual", 2)]
    order = [("other", 1), ("factual", 1), (None, 1), ("other", 2), ("factual", 2), ("other", 3)]
    assert dealt(items, lambda item: item[0]) == order


def test_the_columns_of_a_row_without_any() -> None:
    assert keys_of({}) == "none"
    assert keys_of({"prompt": 1, "text": 2}) == "prompt, text"
