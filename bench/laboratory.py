"""The simulated platform as a laboratory: do the objectives find what was planted?

Key terms: of the words that key-term masking hides, how many were planted as key terms, beside
hiding as many words at random. Label weights: average precision for planted rare fresh tags (those
of an event of one week) on held-out items, trained with TF-IDF weights and with plain ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.metrics import average_precision_score

from bench.harness import Report, main
from jobs import ingest
from rec.artifacts import open_artifact
from rec.data.rows import build_rows
from rec.features.masking import MaskingConfig, mask_terms
from rec.features.tags import normalise
from rec.features.text import TextTokenizer
from rec.metrics.bootstrap import over_seeds
from rec.models.content.encoder import load_encoder
from rec.nn.losses.masked_tokens import IGNORE
from rec.recipes.content import ROWS, ContentRecipe, demo
from rec.runtime.train import train
from rec.sources import SyntheticSource

_FIRST_SEED = 100  # platforms of lower seeds were looked at when steps and sizes were chosen
_MIN_POSITIVES = 3  # held-out items an event's tag needs to be counted


def _rows(folder: Path, side: str) -> Iterator[pa.Table]:
    for path in sorted((folder / side).glob("*.parquet")):
        yield pq.read_table(path)


def _planted_share(folder: Path, source: SyntheticSource, kind: str, seed: int) -> float:
    """Share of planted key terms among the words that masking hides in the training texts."""
    truth = source.truth()
    tokenizer = TextTokenizer(folder / "tokenizer", 512)
    config = MaskingConfig.model_validate({"kind": kind, "mask_token_id": tokenizer.mask_id})
    generator = torch.Generator().manual_seed(seed)
    hits = total = 0
    for table in _rows(folder, "train"):
        columns = [table.column(c).to_pylist() for c in ("token_ids", "word_ids", "term_scores")]
        for item_id, ids, words, scores in zip(
            table.column("item_id").to_pylist(), *columns, strict=True
        ):
            planted = truth.key_terms_of(truth.index_of(item_id))
            _, targets = mask_terms(
                torch.tensor([ids]),
                torch.tensor([words]),
                torch.tensor([scores]),
                generator,
                config,
            )
            hidden = {w for w, t in zip(words, targets[0].tolist(), strict=True) if t != IGNORE}
            for word in hidden:
                pieces = [i for i, w in zip(ids, words, strict=True) if w == word]
                total += 1
                hits += tokenizer.backend.decode(pieces).replace(" ", "") in planted
    return hits / max(total, 1)


def _fresh_tag_precision(encoder_uri: str, folder: Path, source: SyntheticSource) -> list[float]:
    """Average precision of every planted event tag that reaches the held-out items, over these."""
    truth, encoder = source.truth(), load_encoder(encoder_uri)
    scores: list[np.ndarray] = []
    events: list[np.ndarray] = []
    for table in _rows(folder, "heldout"):
        logits = encoder.model.labels(torch.from_numpy(encoder.encode_rows(table)))
        scores.append(logits.detach().numpy())
        indices = [truth.index_of(i) for i in table.column("item_id").to_pylist()]
        events.append(truth.event_of(np.array(indices)))
    all_scores, all_events = np.concatenate(scores), np.concatenate(events)
    known = {label: i for i, label in enumerate(encoder.labels)}
    found = []
    for event in np.unique(all_events[all_events >= 0]):
        tag = normalise(pa.array([truth.event_tag(int(event))]))[0].as_py()
        positives = all_events == event
        if tag in known and positives.sum() >= _MIN_POSITIVES:
            found.append(float(average_precision_score(positives, all_scores[:, known[tag]])))
    return found


def _recipe(weighting: str, steps: int) -> ContentRecipe:
    return demo().override(
        [
            f"rows.labels.weights.weighting={weighting}",
            "rows.labels.weights.half_life_days=30",
            # the label objective alone: whatever differs then comes from the weights
            "weights.infonce=0",
            "weights.key_terms=0",
            "masking.kind=off",
            "inputs.height=32",
            "inputs.width=32",
            "inputs.max_frames=1",
            "model.audio=null",
            f"train.steps={steps}",
            f"train.validate_every={steps}",
            f"train.checkpoint_every={steps}",
        ]
    )


def measure(options: argparse.Namespace, report: Report) -> None:
    items, steps, platforms = (2000, 20, 4) if options.quick else (2000, 200, 12)
    precision: dict[str, list[float]] = {"tfidf": [], "plain": []}
    for seed in range(_FIRST_SEED, _FIRST_SEED + platforms):
        # an event shows in an item's words alone; without frames and sounds there is time for more
        # platforms, each of which has none to two events that reach across its cut-off
        source = SyntheticSource(num_items=items, seed=seed, frame_share=0.0, sound_share=0.0)
        with tempfile.TemporaryDirectory(prefix="raycall-laboratory-") as out:
            ingest.run_tables(ingest.IngestConfig(source=source), out)
            for weighting, found in precision.items():
                place = f"{out}/{weighting}"
                recipe = _recipe(weighting, steps).override([f"train.seed={seed}"])
                rows, encoder = f"{place}/rows", f"{place}/encoder"
                build_rows(f"{out}/tables", rows, recipe.rows)
                folder = open_artifact(rows, ROWS)[1]
                if weighting == "tfidf" and seed == _FIRST_SEED:
                    _key_terms(folder, source, report)
                train(recipe, rows, place, num_workers=0, encoder=encoder)
                each = _fresh_tag_precision(encoder, folder, source)
                if not each:
                    report.note(f"platform {seed} has no event on both sides of its cut-off")
                    break
                found.append(float(np.mean(each)))
                report.note(
                    f"{weighting}, platform {seed}: mAP {found[-1]:.4f} over {len(each)} event tags"
                )
    gains = [a - b for a, b in zip(precision["tfidf"], precision["plain"], strict=True)]
    if not gains:
        raise SystemExit("no platform has an event on both sides of its cut-off; look at more")
    low, high = over_seeds(gains)[1:]
    report.add("mAP of fresh tags, TF-IDF weights", float(np.mean(precision["tfidf"])))
    report.add("mAP of fresh tags, plain weights", float(np.mean(precision["plain"])))
    report.add("gain in mAP, mean over platforms", float(np.mean(gains)))
    report.add("gain in mAP, low end of its 95 % interval", low, bar=0.0)
    report.note(f"gain in mAP: 95 % interval over {len(gains)} platforms [{low:.4f}, {high:.4f}]")
    report.note(
        f"each platform has a seed of its own, as its two trainings have, and {items} items; demo "
        f"recipe on labels and words alone, {steps} steps; half life 30 days"
    )


def _key_terms(folder: Path, source: SyntheticSource, report: Report) -> None:
    shares = {
        kind: [_planted_share(folder, source, kind, seed) for seed in range(3)]
        for kind in ("key_terms", "uniform")
    }
    for kind, values in shares.items():
        report.add(f"planted share of hidden words, {kind}", float(np.mean(values)))
    ratio = float(np.mean(shares["key_terms"]) / np.mean(shares["uniform"]))
    report.add("key-term precision over random masking", ratio, bar=3.0)


if __name__ == "__main__":
    main("laboratory", __doc__, measure)
