"""Methods written in one line."""

from __future__ import annotations

import pytest

from bltcli.decoding import MethodOptions
from bltcli.decoding.setting import format_setting, parse_setting
from bltcli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("ar", MethodOptions(method="ar")),
        ("blt-s k=4", MethodOptions(method="blt-s", draft_bytes=4)),
        ("blt-s ngram=yes", MethodOptions(method="blt-s", draft_bytes="auto", ngram_draft=True)),
        ("blt-d block=4 unmask=entropy alpha=0.5", MethodOptions(method="blt-d", block=4, unmask="entropy", alpha=0.5)),
        ("blt-h block=8 gamma=1.2 trust=0.5", MethodOptions(method="blt-h", block=8, gamma=1.2, trust=0.5)),
    ],
)  # fmt: skip
def test_a_setting_is_read_and_written(text: str, options: MethodOptions) -> None:
    assert parse_setting(text) == (options, {})
    assert format_setting(options) == text


@pytest.mark.parametrize(
    ("text", "trained", "block"),
    [("blt-d", 16, 16), ("blt-dv", 8, 8), ("blt-h", 16, 4), ("blt-h", 2, 2), ("blt-h block=8", 16, 8),
     ("blt-d commit=sure", 16, 4), ("blt-d commit=patches", 16, 16), ("ar", 16, None)],
)  # fmt: skip
def test_blocks_are_as_large_as_was_trained_and_small_where_a_round_is_one_pass(
    text: str, trained: int, block: int | None
) -> None:
    assert parse_setting(text)[0].settings(trained)["block"] == block


def test_keys_of_others_come_back_as_they_are() -> None:
    assert parse_setting("ar engine=torch", ["engine"]) == (MethodOptions(method="ar"), {"engine": "torch"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "--method is ''"),
        ("magic", "--method is 'magic'"),
        ("blt-s k", "'k' is not one of k, block"),
        ("blt-s k=many", "'many' is no value for k"),
        ("blt-s speed=9", "'speed=9' is not one of"),
        ("ar ngram=maybe", "'maybe' is no value for ngram"),
        ("blt-s k=99", "--draft-bytes is 99"),
        ("ar engine=torch", "'engine=torch' is not one of"),
    ],
)
def test_other_settings_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_setting(text)
