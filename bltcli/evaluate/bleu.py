"""BLEU and chrF++ through sacrebleu, with their signatures and a paired bootstrap between settings."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bltcli.errors import UsageError

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

TOKENIZERS: Final = ("flores101", "flores200", "spBLEU-1K", "13a", "intl", "char", "none")
FETCH_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Score:
    """A corpus score; mean and half width of its 95 % interval over bootstrap samples; the chance to see a difference
    from the baseline as large as this where there is none (None for the baseline itself)."""

    score: float
    mean: float
    interval: float
    p: float | None


@dataclass(frozen=True)
class Scores:
    signatures: dict[str, str]  # by metric
    by_setting: dict[str, dict[str, Score]]  # setting -> metric -> score


def open_bleu(tokenizer: str, notice: Callable[[str], None]) -> BLEU:
    """The BLEU metric. A SentencePiece tokenizer needs a file, which sacrebleu keeps in its own folder and fetches when
    it is not there. UsageError when that fails, or when the file is none."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.tokenizers import tokenizer_spm
    from sacrebleu.utils import SACREBLEU_DIR

    if tokenizer not in TOKENIZERS:
        raise UsageError(f"--tokenize is {tokenizer}; use one of {', '.join(TOKENIZERS)}")
    if tokenizer not in tokenizer_spm.SPM_MODELS:
        return BLEU(tokenize=tokenizer)
    url = tokenizer_spm.SPM_MODELS[tokenizer]["url"]
    file = Path(SACREBLEU_DIR, "models", Path(url).name)
    fetch = not (file.is_file() and file.stat().st_size)
    if fetch:
        notice(f"fetching the tokenizer {tokenizer} from {url} to {file}")
    try:
        with _patience(FETCH_TIMEOUT_S):
            return BLEU(tokenize=tokenizer)
    except ImportError as error:
        raise UsageError(f"--tokenize {tokenizer} needs sentencepiece; pip install 'bltcli[eval]'") from error
    except (OSError, SystemExit, RuntimeError) as error:
        if not fetch:
            raise UsageError(f"{file} is no SentencePiece model; remove it, or name another --tokenize") from error
        raise UsageError(
            f"--tokenize {tokenizer} needs {file}, and {url} cannot be fetched ({_reason(error)}); put the file there, "
            "or use --tokenize 13a, whose scores are not comparable"
        ) from error


def score(bleu: BLEU, outputs: Mapping[str, Sequence[str]], references: Sequence[str], baseline: str) -> Scores:
    """Corpus scores of each setting's outputs, and for all but `baseline` how sure their difference from it is."""
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.significance import PairedTest

    names = [baseline, *(name for name in outputs if name != baseline)]
    systems = [(name, outputs[name]) for name in names]
    metrics = {"BLEU": bleu, "chrF++": CHRF(word_order=2)}
    signatures, columns = PairedTest(systems, metrics, [references], test_type="bs")()
    by_setting: dict[str, dict[str, Score]] = {name: {} for name in outputs}
    for shown, metric in zip(signatures, metrics, strict=True):  # sacrebleu calls the second chrF2++
        for name, found in zip(names, columns[shown], strict=True):
            by_setting[name][metric] = _score(found, same=outputs[name] == outputs[baseline])
    return Scores({m: str(s) for m, s in zip(metrics, signatures.values(), strict=True)}, by_setting)


def _score(found: Any, *, same: bool) -> Score:
    p = None if found.p_value is None else float(found.p_value)
    if p is not None and same:
        p = 1.0  # sacrebleu, which counts samples beyond a difference of 0, says nearly 0
    return Score(float(found.score), float(found.mean), float(found.ci), p)


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error  # of urllib's own errors
    return str(getattr(reason, "strerror", None) or reason)


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Sockets opened meanwhile give up after `seconds`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
