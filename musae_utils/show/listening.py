"""A blind listening study on one page, and what its answers say (notebook 10).

`make` turns trials into a page that opens from a file, needs no network and sends nothing anywhere:
a listener works through it, alone with a keyboard if need be, and hands in a small file. `analyse`
reads those files together with the key, which only the teacher has.

Three kinds of trial::

    abx       two sounds A and B, and X, which is one of them: can they be told apart?
    prefer    two to six sounds: which sounds more like a stated label?
    rate      one sound: how well does a label fit it, from 1 to 5?

**Blind** means that a listener cannot tell conditions even from the page's source. Trials and
sounds have random names; their order in the file is random, and the order and sides that each
listener gets are drawn from the listener's code. All sounds have one sample rate, one length (the
shortest of them) and therefore one size, and one loudness (ITU-R BS.1770-4) unless that is what is
asked about; a noise of one 16-bit step keeps the same untouched sound, used twice, from being the
same bytes twice.

References
----------
Singh, Cherep and Maes (2026), arXiv:2505.18186: 100 three-way trials (steered, untouched, a random
direction of the same length) and labels of 400 features rated from 1 to 5 by five listeners each.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import stats as scipy_stats

from musae_utils import runs, stats
from musae_utils.runs import RunError
from musae_utils.show import page as pages
from musae_utils.show import players
from musae_utils.stats import Interval

KINDS = {"abx": (2, 2), "prefer": (2, 6), "rate": (1, 1)}  # fewest and most sounds
SHORTEST = 0.3  # seconds
FADE = 0.01  # seconds at either end
STEP = 2.0**-15  # of 16 bits
ANSWERS, KEY = "musae-listening-answers-1", "musae-listening-key-1"


class Trial(NamedTuple):
    """One question to a listener.

    Attributes
    ----------
    kind : {"abx", "prefer", "rate"}
    sounds : mapping of condition to sound
        Conditions in your words ("steered", "untouched"): only the key will have them. A sound is
        a Clip, or an array or tensor of shape (n,).
    label : str
        What "prefer" and "rate" ask about.
    item : str
        What the trial is about (a feature, a prompt): trials of one item are not independent.
    """

    kind: str
    sounds: Mapping[str, Any]
    label: str = ""
    item: str = ""


# -- the page --------------------------------------------------------------------------------------


def make(
    trials: Sequence[Trial],
    page: str | Path,
    key: str | Path,
    title: str = "What do you hear?",
    about: str = "",
    sample_rate: int | None = None,
    match: bool = True,
    seed: int | None = None,
) -> Path:
    """Write the page for listeners and the key for the teacher.

    Parameters
    ----------
    trials : sequence of Trial
    page, key : str or Path
        Where to write; in different folders, since the page's will be given away.
    title, about : str
        What listeners are told. Say nothing about conditions.
    sample_rate : int, optional
        Of bare arrays, in Hz.
    match : bool
        Bring all sounds to one loudness. Switch it off where a label is about loudness.
    seed : int, optional
        Decides names and order; secret and new each time unless given.

    Returns
    -------
    Path
        Of the page. Ten seconds of sound make it 110 KB larger.

    Raises
    ------
    ValueError
        No trials; one of an unknown kind, with the wrong number of sounds or without a label;
        sounds that are silent, too short, or of different sample rates; page and key in one folder.

    Examples
    --------
    >>> trial = Trial("prefer", {"steered": a, "untouched": b}, "drums", "3/17")  # doctest: +SKIP
    >>> make([trial], "study/index.html", "secret/key.json", sample_rate=16000)  # doctest: +SKIP
    """
    from musae_utils.labels import clean

    page, key = Path(page), Path(key)
    if page.resolve().parent == key.resolve().parent:
        raise ValueError(
            f"The key would lie beside the page in {page.parent}, where a listener may find it: "
            "put it into another folder."
        )
    trials = [trial._replace(label=clean(trial.label), item=clean(trial.item)) for trial in trials]
    sounds, rate = _checked(trials, sample_rate)
    rng = random.Random(seed if seed is not None else int.from_bytes(random.randbytes(16)))
    encoded = _encoded(sounds, rate, rng.getrandbits(64), match)
    new = (f"{name:08x}" for name in rng.sample(range(2**32), len(trials) + len(encoded)))
    asked, known = [], {}
    for i, trial in enumerate(trials):
        named = {next(new): condition for condition in trial.sounds}
        trial_id = next(new)
        heard = [{"id": s, "data": encoded[i, condition]} for s, condition in named.items()]
        heard.sort(key=lambda sound: sound["id"])
        asked.append({"id": trial_id, "kind": trial.kind, "label": trial.label, "sounds": heard})
        item = trial.item or trial_id
        known[trial_id] = {"kind": trial.kind, "label": trial.label, "item": item, "sounds": named}
    asked.sort(key=lambda trial: trial["id"])
    kinds = list(dict.fromkeys(trial.kind for trial in trials))
    study = {"answers": ANSWERS, "practice": _practice(kinds), "trials": asked}
    text = json.dumps(study, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    runs.atomic_write(page, _page(clean(title), clean(about, 600), name, text))
    runs.save_json(key, {"format": KEY, "study": name, "title": clean(title), "trials": known})
    return page


def _checked(trials: Sequence[Trial], sample_rate: int | None) -> tuple[dict, int]:
    """Samples of every (trial, condition), all of one length; and their rate."""
    if not trials:
        raise ValueError("A study needs trials: give at least one listening.Trial.")
    sounds, rates = {}, {}
    for i, trial in enumerate(trials):
        which = f"Trial {i + 1}"
        if trial.kind not in KINDS:
            raise ValueError(f"{which}: kind is one of {', '.join(KINDS)}; not {trial.kind!r}.")
        fewest, most = KINDS[trial.kind]
        if not fewest <= len(trial.sounds) <= most:
            wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            raise ValueError(
                f"{which}: {trial.kind!r} takes {wanted} sounds, not {len(trial.sounds)}."
            )
        if trial.kind != "abx" and not trial.label:
            raise ValueError(f"{which}: {trial.kind!r} asks about a label, and there is none.")
        for condition, sound in trial.sounds.items():
            try:
                samples, rates[i, condition] = players.mono(sound, sample_rate)
            except ValueError as error:
                raise ValueError(f"{which}, {condition!r}: {error}") from None
            if not math.isfinite(players.loudness(samples, rates[i, condition])):
                raise ValueError(f"{which}, {condition!r}: the sound is silent.")
            sounds[i, condition] = samples
    if len(set(rates.values())) > 1:
        raise ValueError(
            f"The sounds have sample rates of {sorted(set(rates.values()))} Hz, and that can be "
            "heard: bring them to one."
        )
    rate = next(iter(rates.values()))
    length = min(map(len, sounds.values()))
    if length < SHORTEST * rate:
        raise ValueError(
            f"The shortest sound has {length / rate:.2f} s, and all are cut to it: {SHORTEST} s "
            "are the least."
        )
    return {place: samples[:length] for place, samples in sounds.items()}, rate


def _encoded(sounds: dict, rate: int, seed: int, match: bool = True) -> dict[Any, str]:
    """MP3 in base64 of each sound, of one length and, matched, one loudness."""
    rng = np.random.default_rng(seed)
    gains = players.matching_gains([(samples, rate) for samples in sounds.values()], match)
    fade = np.minimum(1, np.arange(1, len(next(iter(sounds.values()))) + 1) / (FADE * rate))
    out = {}
    for (place, samples), gain in zip(sounds.items(), gains, strict=True):
        loud = samples * np.float32(10 ** (gain / 20)) + STEP * rng.standard_normal(len(samples))
        data = players.mp3((loud * fade * fade[::-1]).astype(np.float32), rate)
        out[place] = base64.b64encode(data).decode()
    return out


def _practice(kinds: Sequence[str]) -> list[dict]:
    """A trial of each kind that comes, with four notes in two timbres that nobody confuses."""
    rate, t = 16_000, np.arange(4_000) / 16_000
    notes = [2 * np.pi * hertz * t for hertz in (262, 330, 392, 523)]
    dull = np.concatenate([np.sin(x) * np.exp(-4 * t) for x in notes])
    bright = np.concatenate([sum(np.sin(k * x) / k for k in range(1, 9)) * np.exp(-4 * t)
                             for x in notes])  # fmt: skip
    made = _encoded({"bright": bright, "dull": dull}, rate, 0)
    both = [{"id": name, "data": data} for name, data in made.items()]
    return [
        {"id": f"practice-{kind}", "kind": kind, "label": "" if kind == "abx" else "bright",
         "sounds": both[: KINDS[kind][0]]}
        for kind in kinds
    ]  # fmt: skip


def _page(title: str, about: str, name: str, study: str) -> str:
    style = "".join(pages._asset(f"{part}.css") for part in ("page", "alone", "listening"))
    said = f"<p>{escape(about)}</p>" if about else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src data:">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main class="musae">
<h1>{escape(title)}</h1>
<noscript>This page needs JavaScript.</noscript>
<section id="intro" aria-label="Before you begin">
{said}
<p>Use headphones in a quiet room, and set the volume in the practice. Listen as often as you like. Nothing leaves this computer: at the end you save a file and hand it in.</p>
<div id="kept" hidden><p id="so-far"></p><div class="row"><button id="resume" type="button" class="main">Go on</button><button id="save-some" type="button">Save what there is</button></div></div>
<form id="begin"><label for="code">Your code, if you were given one (not your name)</label>
<input id="code" type="text" maxlength="40" autocomplete="off" spellcheck="false">
<p><button type="submit" class="main">Begin</button></p></form>
</section>
<section id="trial" aria-labelledby="question" hidden>
<p id="where"></p><progress id="progress" value="0" max="1" aria-label="Trials done"></progress>
<h2 id="question" tabindex="-1"></h2>
<div id="sounds" role="group" aria-label="Sounds"></div>
<fieldset id="answers"></fieldset>
<p id="hint" role="status"></p>
<div class="row"><button id="next" type="button" class="main">Next</button><button id="pause" type="button">Pause</button></div>
<label class="keys"><input id="keys" type="checkbox" checked> <span>Keys: <span id="which"></span></span></label>
</section>
<section id="end" aria-labelledby="done" hidden>
<h2 id="done" tabindex="-1">That was all. Thank you.</h2>
<p>Now save your answers and hand in the file.</p>
<div class="row"><button id="save" type="button" class="main">Save my answers</button><button id="another" type="button">Another listener</button></div>
<p id="saved" role="status"></p>
<details><summary>What is in the file</summary><pre id="file" tabindex="0" aria-label="The file"></pre></details>
</section>
</main>
<script type="application/json" id="study" data-study="{name}">{study}</script>
<script>{pages._asset("listening.js")}</script>
</body>
</html>
"""  # noqa: E501


# -- the answers -----------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Answer(_Strict):
    trial: str
    shown: tuple[str, ...]
    seconds: float = Field(ge=0, allow_inf_nan=False)
    at: str = Field(max_length=40)
    x: str | None = None
    chosen: str | None = None
    rating: int | None = Field(default=None, ge=1, le=5, strict=True)


class _Export(_Strict):
    format: Literal["musae-listening-answers-1"]
    study: str
    listener: str = Field(min_length=1, max_length=40)
    seed: int
    began: str = Field(max_length=40)
    saved: str = Field(max_length=40)
    trials: int
    answers: tuple[_Answer, ...]


class _Known(_Strict):
    kind: Literal["abx", "prefer", "rate"]
    label: str
    item: str
    sounds: dict[str, str]


class _Key(_Strict):
    format: Literal["musae-listening-key-1"]
    study: str
    title: str
    trials: dict[str, _Known]


class Results(NamedTuple):
    """What listeners said. An interval has two forms: by listener, and by item.

    Attributes
    ----------
    wins : DataFrame by condition
        Of "prefer": ``chosen``, ``of`` (trials in which it stood), ``share``, ``by_listener``,
        ``by_item`` (`Interval`), ``expected`` (had all been alike), and of the trials with the same
        conditions together ``chi2`` and its ``p``.
    duels : DataFrame by pair of conditions
        Of "prefer", each two of its conditions: ``wins``, ``losses``, ``p`` (exact binomial,
        two-sided, answers taken as independent), ``p_listeners`` (sign-flip test over listeners),
        ``adjusted`` (`p` after Holm).
    ratings : DataFrame by condition
        ``n``, ``mean``, ``by_listener``, ``by_item``.
    abx : DataFrame by pair of conditions
        ``right``, ``of``, ``accuracy``, ``by_listener``, ``by_item``, ``p`` (exact binomial, above
        one half).
    agreement : Series by "prefer" and "rate"
        Kappa of two listeners at the same trial, over all pairs of listeners (`Interval` by trial).
        Ratings are taken as five categories, so that 4 and 5 disagree as much as 1 and 5.
    answers : DataFrame
        Each answer: ``listener``, ``trial``, ``kind``, ``item``, ``conditions``, ``chosen``,
        ``rating``, ``right``, ``seconds``.
    notes : list of str
        What a reader should know of the files.
    """

    wins: pd.DataFrame
    duels: pd.DataFrame
    ratings: pd.DataFrame
    abx: pd.DataFrame
    agreement: pd.Series
    answers: pd.DataFrame
    notes: list[str]


def analyse(exports: Iterable[str | Path | Mapping], key: str | Path | Mapping) -> Results:
    """Count what listeners said, condition by condition.

    The exact tests take every answer as independent, as S1's did; listeners who answer many trials
    and items that come up several times make that too optimistic, so each figure has an interval
    that resamples listeners and one that resamples items. Both are too narrow with fewer than about
    20 of them, and NaN with one.

    Parameters
    ----------
    exports : iterable of str, Path or mapping
        The files that listeners handed in, or what is in them.
    key : str, Path or mapping

    Returns
    -------
    Results

    Raises
    ------
    RunError
        A file is cut off, no file of answers, of another study, or contradicts the page; or two
        files of one listener contradict each other.
    """
    key = _read(_Key, key, "the key of a listening study")
    heard, problems = {}, []
    notes: list[str] = []
    for number, source in enumerate(exports, 1):
        name = f"Answers {number}" if isinstance(source, Mapping) else str(source)
        try:
            export = _read(_Export, source, "answers to a listening study", name)
            _check(export, key, name)
            _take(export, name, heard, notes)
        except (RunError, FileNotFoundError) as error:
            problems.append(str(error))
    if problems:
        raise RunError("\n".join(problems))
    if not any(export.answers for export, _ in heard.values()):
        raise RunError("Nobody has answered anything yet: there is nothing to analyse.")
    for export, name in heard.values():
        if len(export.answers) < len(key.trials):
            done = f"{len(export.answers)} of {len(key.trials)}"
            notes.append(f"{name}: listener {export.listener!r} answered {done} trials.")
    table = _table((export for export, _ in heard.values()), key)
    by = {kind: table[table["kind"] == kind] for kind in KINDS}
    agreed = {kind: _agreement(by[kind]) for kind in ("prefer", "rate") if len(by[kind])}
    return Results(
        _wins(by["prefer"]), _duels(by["prefer"]), _ratings(by["rate"]), _abx(by["abx"]),
        pd.Series(agreed, dtype=object),
        table, notes,
    )  # fmt: skip


def _read(form: type[BaseModel], source: Any, what: str, name: str = "The key") -> Any:
    found = source if isinstance(source, Mapping) else runs.load_json(source)
    name = name if isinstance(source, Mapping) else str(source)
    try:
        return form.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise RunError(
            f"{name} is not {what}, or was changed ({where}: {first['msg'].lower()}). Use the file "
            "as the page saved it."
        ) from None


def _check(export: _Export, key: _Key, name: str) -> None:
    if export.study != key.study:
        raise RunError(
            f"{name} answers another page ({export.study}) than the one of this key ({key.study})."
        )
    asked = [answer.trial for answer in export.answers]
    if len(set(asked)) < len(asked):
        raise RunError(f"{name} answers a trial twice: it was changed.")
    for answer in export.answers:
        known = key.trials.get(answer.trial)
        ids = set(known.sounds) if known else set()
        whole = known is not None and sorted(answer.shown) == sorted(ids)
        if known is not None and known.kind == "rate":
            whole = whole and answer.rating is not None and answer.chosen is None
        elif known is not None:
            whole = whole and answer.rating is None and answer.chosen in ids
            whole = whole and (answer.x in ids if known.kind == "abx" else answer.x is None)
        if not whole:
            raise RunError(
                f"{name}: its answer to trial {answer.trial!r} does not fit the page, so the file "
                "was changed."
            )


def _take(export: _Export, name: str, heard: dict, notes: list[str]) -> None:
    """Keep one file a listener: of two, the longer, if it holds the other."""
    if export.listener not in heard:
        heard[export.listener] = export, name
        return
    other, first = heard[export.listener]
    short, long = sorted((export, other), key=lambda one: len(one.answers))
    if set(short.answers) - set(long.answers):
        raise RunError(
            f"{first} and {name} are both of listener {export.listener!r} and differ: two people "
            "with one code, or one who did it twice. Keep one of them."
        )
    heard[export.listener] = long, first if long is other else name
    notes.append(
        f"Listener {export.listener!r} handed in two files, {first} and {name}; one holds the "
        "other and counts."
    )


def _table(exports: Iterable[_Export], key: _Key) -> pd.DataFrame:
    rows = []
    for export in exports:
        for answer in export.answers:
            known = key.trials[answer.trial]
            conditions = tuple(sorted(known.sounds.values()))
            right = answer.chosen == answer.x if known.kind == "abx" else None
            rows.append(
                (export.listener, answer.trial, known.kind, known.item, conditions,
                 known.sounds.get(answer.chosen), answer.rating, right, answer.seconds)
            )  # fmt: skip
    columns = "listener trial kind item conditions chosen rating right seconds".split()
    return pd.DataFrame(rows, columns=columns)


def _spans(values: Any, rows: pd.DataFrame) -> dict[str, Interval]:
    values = np.asarray(values, float)
    found = {}
    for name, unit in (("by_listener", "listener"), ("by_item", "item")):
        n = rows[unit].nunique()
        found[name] = (
            stats.bootstrap(values, groups=rows[unit].to_numpy())
            if n > 1
            else Interval(float(values.mean()), math.nan, math.nan, n)
        )
    return found


def _wins(rows: pd.DataFrame) -> pd.DataFrame:
    out = {}
    for conditions, some in rows.groupby("conditions", sort=True):
        counts = [int((some["chosen"] == condition).sum()) for condition in conditions]
        test = scipy_stats.chisquare(counts)
        for condition, chosen in zip(conditions, counts, strict=True):
            out[" / ".join(conditions), condition] = {
                "chosen": chosen, "of": len(some), "share": chosen / len(some),
                **_spans(some["chosen"] == condition, some), "expected": 1 / len(conditions),
                "chi2": float(test.statistic), "p": float(test.pvalue),
            }  # fmt: skip
    columns = "chosen of share by_listener by_item expected chi2 p".split()
    return _framed(out, columns, ["among", "condition"])


def _duels(rows: pd.DataFrame) -> pd.DataFrame:
    out = {}
    everything = sorted({condition for some in rows["conditions"] for condition in some})
    for a, b in itertools.combinations(everything, 2):
        met = rows[[a in some and b in some for some in rows["conditions"]]]
        if met.empty:
            continue
        won, lost = (met["chosen"].to_numpy() == one for one in (a, b))
        wins, losses = int(won.sum()), int(lost.sum())
        over = met["listener"].to_numpy()
        out[a, b] = {
            "wins": wins, "losses": losses,
            "p": float(scipy_stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
            "p_listeners": stats.paired_test(won, lost, groups=over).p
            if len(set(over)) > 1 else math.nan,
        }  # fmt: skip
    table = _framed(out, ["wins", "losses", "p", "p_listeners"], ["condition", "against"])
    return table.assign(adjusted=stats.holm(table["p"].astype(float)))


def _ratings(rows: pd.DataFrame) -> pd.DataFrame:
    out = {}
    for (condition,), some in rows.groupby("conditions", sort=True):
        mean = float(some["rating"].mean())
        out[condition] = {"n": len(some), "mean": mean, **_spans(some["rating"], some)}
    return _framed(out, ["n", "mean", "by_listener", "by_item"], ["condition"])


def _abx(rows: pd.DataFrame) -> pd.DataFrame:
    out = {}
    for pair, some in rows.groupby("conditions", sort=True):
        right = int(some["right"].astype(bool).sum())
        test = scipy_stats.binomtest(right, len(some), alternative="greater")
        out[pair] = {
            "right": right, "of": len(some), "accuracy": right / len(some),
            **_spans(some["right"], some), "p": float(test.pvalue),
        }  # fmt: skip
    columns = "right of accuracy by_listener by_item p".split()
    return _framed(out, columns, ["condition", "against"])


def _framed(rows: dict, columns: list[str], index: list[str]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows.values()), columns=columns)
    many = pd.MultiIndex.from_tuples(rows, names=index) if rows and len(index) > 1 else None
    table.index = pd.Index(list(rows), name=index[0]) if many is None else many
    return table


def _agreement(rows: pd.DataFrame) -> Interval:
    """Chance-corrected agreement of two listeners at the same trial, in both orders."""
    from musae_utils.labels import agreement

    said = rows["rating"] if rows["kind"].iloc[0] == "rate" else rows["chosen"]
    pairs = [
        (one, other, trial)
        for trial, some in said.groupby(rows["trial"])
        for one, other in itertools.permutations(some, 2)
    ]
    if len(pairs) < 2:
        return Interval(math.nan, math.nan, math.nan, 0)
    return agreement(*zip(*pairs, strict=True))
