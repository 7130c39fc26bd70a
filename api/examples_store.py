"""Documents that the documentation of what is stored shows."""

from api.examples import ARCHITECTURE, BOUNDS, PROVENANCE, Document

DIGEST = "5f70bf18a08600705f70bf18a08600705f70bf18a08600705f70bf18a0860070"

TABLE: Document = {
    "id": DIGEST[:16],
    "digest": DIGEST,
    "target": "a100-eager-amp-b256-n197",
    "device": "a100",
    "runtime": "eager",
    "dtype": "amp",
    "batch": 256,
    "tokens": 197,
    "kind": "measured",
    "norm": "layer",
    "points": 9375,
    "bytes": 180_123,
    "file": "a100-eager-amp-b256-n197-5f70bf18.parquet",
    "origin": "uploaded",
    "answers": True,
    "note": None,
    "created_at": "2026-01-31T09:00:00Z",
    "bounds": BOUNDS,
    "interval": None,
}

_POINT = {"embed_dim": 64, "num_heads": 1, "qk_dim": 8, "v_dim": 8, "mlp_dim": 16, "latency_ms": 0.21, "iqr_ms": 0.01}

TABLE_DETAIL: Document = TABLE | {
    "grid": {name: list(ends) for name, ends in BOUNDS.items()},
    "fastest": _POINT,
    "slowest": _POINT | {"embed_dim": 768, "latency_ms": 14.1},
    "outside_ms": {"64": 1.1, "768": 2.9},
    "provenance": PROVENANCE,
}

TABLE_CHECK: Document = {
    "valid": False,
    "problem": "row 17: median_ms is -0.3; times are positive",
    "target": None,
    "kind": None,
    "points": None,
    "bounds": {},
    "negative_steps": None,
    "replaces": None,
}

COMPARED_TABLES: Document = {
    "a": DIGEST[:16],
    "b": "a1b2c3d4e5f60718",
    "bounds": BOUNDS,
    "points": 9375,
    "ratio": {"0": 0.61, "50": 0.77, "100": 1.02},
    "rank_correlation": 0.996,
    "presets": [{"preset": "deit-s", "a_ms": 61.2, "b_ms": 47.0}],
}

MODEL: Document = {
    "model": "deit-s-flowers",
    "digest": DIGEST,
    "bytes": 88_300_112,
    "origin": "uploaded",
    "created_at": "2026-01-31T09:00:00Z",
    "id": "arch-0123456789abcdef",
    "architecture": ARCHITECTURE,
    "params": 22050664,
    "macs": 4607954304,
    "lineage": [{"step": "import", "from": "deit_small_patch16_224"}],
    "sparsity": None,
    "rebased": False,
}

FRONTIER_REQUEST: Document = {"saliency": "deit-s-gates", "target": "macs", "most": 100}

FRONTIER: Document = {
    "saliency": "deit-s-gates",
    "target": "macs",
    "unit": "million MACs",
    "kind": "analytic",
    "interval": None,
    "full_ms": 541.3,
    "smallest_ms": 20.1,
    "answers": 21033,
    "architecture": ARCHITECTURE,
    "points": [
        {"latency_ms": 20.1, "kept": 0.11, "bound": 0.11, "embed_dim": 64, "blocks": [[1, 8, 8, 16], [1, 8, 8, 16]]}
    ],
}
