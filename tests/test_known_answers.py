"""The exam of known answers: a code that has the answers passes, one that has none does not."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import POINT, WIDTH, clip_of, store_of

from musae_utils import features, music, stats
from musae_utils.features import exam
from musae_utils.sae import SAE, SAEConfig


class Answers(features.Directions):
    """The columns of the planted rows: chord roots, tonics, drums and noise."""

    def __init__(self, columns=range(WIDTH)):
        super().__init__(torch.eye(WIDTH)[list(columns)], torch.zeros(WIDTH), POINT, both=False)


class Sparse:
    """The same as pairs of value and index, as SAEs give them."""

    hook_point = POINT

    def __init__(self, n=WIDTH):
        self.W_dec = torch.eye(n, WIDTH)

    def encode(self, x):
        raise AssertionError("pairs are to be asked for")

    def encode_sparse(self, x):
        values, indices = (x @ self.W_dec.T - 0.2).topk(3, dim=1)
        return values.relu(), indices


@pytest.fixture(scope="module", autouse=True)
def few_compositions():
    """Composing takes the time here, so little music has to do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exam, "LEAST", 2)
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exam")
    return [
        store_of(folder / name, [clip_of(seed) for seed in seeds])
        for name, seeds in (("found", range(24)), ("scored", range(24, 48)))
    ]


@pytest.fixture(scope="module")
def marks(stores):
    blind = Answers(range(WIDTH - 7, WIDTH))  # noise alone
    return features.known_answers(
        {"answers": Answers(), "sparse": Sparse(), "blind": blind}, *stores, progress=False
    )


def test_planted_answers_are_found_and_noise_finds_none(marks):
    for code in ("answers", "sparse"):
        frame = marks.table.loc[code].loc["frame"]
        roots = frame[[name.startswith("chord root") for name in frame.index]]
        assert len(roots) >= 6 and (roots["auc"] > 0.99).all() and (roots["f1"] > 0.95).all()
        right = [music.PITCH_NAMES.index(name.split(": ")[1]) for name in roots.index]
        assert roots["feature"].tolist() == right
    assert marks.coverage("blind", "frame").value == 0
    assert marks.auc("blind", "frame").high < 0.6
    gain = marks.gain("answers", "blind", "frame")
    assert gain.low > 0.1 and gain.n == 24
    assert marks.gain("answers", "answers", "frame")[:3] == (0, 0, 0)


def test_what_was_not_found_is_told(marks):
    missed, auc = marks.missed("answers", "frame"), marks.table.loc["answers"].loc["frame"]["auc"]
    assert "onset: drum" not in missed and "beat: on the beat" in missed
    assert set(missed) == set(auc.index[auc < 0.9])
    assert auc[missed].is_monotonic_decreasing
    assert marks.coverage("answers", "frame").value == pytest.approx(1 - len(missed) / len(auc))


def test_the_best_feature_was_chosen_elsewhere(stores, marks):
    """On the side where nothing was chosen, another feature may have done better."""
    code = stores[0][POINT.path], stores[1][POINT.path]
    frame = marks.table.loc["answers"].loc["frame"]
    for store, rows, column in zip(stores, code, ("found", "auc"), strict=True):
        holds = music.concepts.frame_table(
            [c.truth for c in store.clips], [c.n_rows for c in store.clips]
        )
        names, table = holds
        which = [names.index(name) for name in frame.index]
        auc = stats.auc(rows[::5].float().numpy(), table[::5, which])
        np.testing.assert_allclose(
            auc[frame["feature"], np.arange(len(frame))], frame[column], atol=1e-6
        )
        if column == "found":
            assert (frame["feature"] == auc.argmax(0)).all()


def test_copies_are_redundant_and_pieces_are_splinters(stores):
    class Copies(Sparse):
        def encode_sparse(self, x):  # two features for each root; G's is cut in two by the drums
            roots = (x[:, :12] > 0.5).float()
            drums = (x[:, 24] > 0.5).float()
            pieces = torch.stack([roots[:, 7] * drums, roots[:, 7] * (1 - drums)], 1)
            rest = roots.clone()
            rest[:, 7] = 0
            values = torch.cat([rest, 0.5 * rest, pieces], 1)
            return values, torch.arange(26).expand_as(values)

    copies = features.known_answers({"copies": Copies(26)}, *stores, progress=False)
    frame = copies.table.loc["copies"].loc["frame"]
    assert frame.loc["chord root: C", "features"] == 2
    assert frame.loc["chord root: G", "features"] <= 1 <= frame.loc["chord root: G", "splinters"]
    assert frame.loc["chord root: C", "splinters"] == 0
    assert copies.exclusivity["copies", "frame"] >= 1
    # Two pieces together tell what neither tells alone.
    assert frame.loc["chord root: G", "probe"] > 0.99


def test_a_probe_of_many_sees_what_no_single_feature_does(stores):
    class Hidden(Sparse):
        def encode_sparse(self, x):  # each of three features holds a third of the frames with C
            c = (x[:, 0] > 0.5).nonzero()[:, 0]
            values = torch.zeros(len(x), 3)
            values[c, c % 3] = 1.0
            return values, torch.arange(3).expand_as(values)

    hidden = features.known_answers({"h": Hidden(3)}, *stores, progress=False)
    row = hidden.table.loc["h"].loc["frame"].loc["chord root: C"]
    assert row["auc"] < 0.75 and row["probe"] > 0.99


def test_rivals_are_of_the_same_size_and_know_nothing(stores):
    sae = SAE(SAEConfig(WIDTH, 64, k=4), POINT)
    sae.initialise(torch.Generator().manual_seed(1), stores[0][POINT.path][:], scaled=True)
    made = features.rivals(sae, stores[0])
    assert [len(r.W_dec) for r in made.values()] == [64, 64, 2 * WIDTH, 2 * WIDTH]
    untrained = made["untrained SAE"]
    assert untrained.config == sae.config and untrained.scale == pytest.approx(
        float(sae.scale), rel=0.2
    )
    assert not torch.equal(untrained.W_dec, sae.W_dec)
    x = stores[1][POINT.path][:50].float()
    pca = made["PCA"].encode(x)
    torch.testing.assert_close(pca[:, :WIDTH], -pca[:, WIDTH:])
    spread = made["PCA"].encode(stores[0][POINT.path][:].float())[:, :WIDTH].var(0)
    assert (spread.diff() <= 1e-5).all()
    again = features.rivals(sae, stores[0])["random directions"].W_dec
    assert torch.equal(again, made["random directions"].W_dec)


def test_what_cannot_be_marked_is_refused(stores, tmp_path):
    with pytest.raises(ValueError, match="on both sides"):
        features.known_answers({"a": Answers()}, stores[0], stores[0])
    unknown = store_of(tmp_path / "unknown", [clip_of(seed, known=False) for seed in (90, 91)])
    with pytest.raises(ValueError, match="truth is not known"):
        features.known_answers({"a": Answers()}, stores[0], unknown)
    few = store_of(tmp_path / "few", [clip_of(92)])
    with pytest.raises(ValueError, match="more music"):
        features.known_answers({"a": Answers()}, stores[0], few)


def test_the_summary_has_a_line_for_each_code_and_level(marks):
    summary = marks.summary()
    assert list(summary.index) == [
        (code, level) for code in ("answers", "sparse", "blind") for level in ("frame", "clip")
    ]
    assert isinstance(summary["coverage"].iloc[0], stats.Interval)
    assert pd.isna(summary.loc[("blind", "frame"), "redundancy"])
    assert "answers, clip: AUC" in repr(marks)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(2, 9), st.integers(0, 10**6), st.booleans())
def test_grouped_auc_is_the_auc_and_its_influence_that_of_leaving_out(groups, size, seed, ties):
    rng = np.random.default_rng(seed)
    n = groups * size
    scores, labels = rng.normal(size=(n, 2)), rng.random((n, 2)) < 0.4
    scores = scores.round() if ties else scores
    group = np.repeat(np.arange(groups), size)
    auc, influence = stats.grouped_auc(scores, labels, group)
    np.testing.assert_allclose(auc, np.diag(stats.auc(scores, labels)), atol=1e-12)
    known = np.isfinite(auc)
    np.testing.assert_allclose(influence[:, known].sum(0), 0, atol=1e-12)


def test_influence_gives_the_bootstraps_standard_error():
    rng = np.random.default_rng(3)
    groups, size = 80, 15
    group = np.repeat(np.arange(groups), size)
    labels = rng.random((groups * size, 1)) < 0.4
    scores = rng.normal(size=labels.shape) + labels + rng.normal(size=(groups, 1))[group]
    _, influence = stats.grouped_auc(scores, labels, group)
    drawn = []
    for _ in range(400):
        rows = (rng.integers(groups, size=groups)[:, None] * size + np.arange(size)).ravel()
        drawn.append(stats.auc(scores[rows], labels[rows])[0, 0])
    assert np.sqrt((influence**2).sum()) == pytest.approx(np.std(drawn), rel=0.15)
