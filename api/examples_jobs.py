"""Documents of jobs that the interface's documentation shows. The tests send the requests and compare the shapes."""

from api.examples import ARCHITECTURE, COMPRESS_JOB, PROVENANCE, Document

__all__ = ["COMPRESS_JOB"]

PROFILE_JOB: Document = {
    "kind": "profile",
    "architecture": {"preset": "deit-s"},
    "batch": 8,
    "points": 100,
    "priority": 7,
    "save_as": "deit-s-here",
}

SALIENCY_JOB: Document = {
    "kind": "saliency",
    "model": "deit-s-flowers",
    "data": "flowers",
    "criterion": "gates",
    "save_as": "flowers-gates",
}

PRUNE_JOB: Document = {
    "kind": "prune",
    "model": "deit-s-flowers",
    "data": "flowers",
    "target": "macs",
    "speedup": 1.5,
    "minimum": {"mlp_dim": 16},
    "rounds": 10,
    "settings": {"drop_path": 0.1},
}

FINETUNE_JOB: Document = {
    "kind": "finetune",
    "model": "deit-s-flowers",
    "data": "flowers",
    "recipe": "short",
    "steps": 500,
    "settings": {"lr": 0.0003},
    "save_as": "deit-s-flowers-longer",
}

SPARSIFY_JOB: Document = {
    "kind": "sparsify",
    "model": "deit-s-flowers",
    "data": "flowers",
    "sweep": [0.5, 0.75],
    "epochs": 30,
    "save_as": "flowers-sparse",
}

STUDY_JOB: Document = {
    "kind": "study",
    "study": {
        "study": "shapes-for-2-gmacs",
        "make": "redistribute",
        "target": "macs",
        "objectives": ["latency_ms", "params"],
        "trials": 200,
        "space": {"embed_dim": {"from": 64, "to": 256, "step": 8}},
    },
}

EXPORT_JOB: Document = {"kind": "export", "model": "deit-s-flowers", "format": "onnx"}

PROFILED: Document = {
    "target": "amd-epyc-1t-eager-fp32-b8-n197",
    "provenance": PROVENANCE,
    "points": 9375,
    "files": {"table": "table.parquet"},
}

SCORED: Document = {
    "criterion": "gates",
    "batches": 16,
    "id": "arch-0123456789abcdef",
    "data": "datasets/flowers:5f70bf18a0860070",
    "files": {"saliency": "saliency.safetensors"},
}

PRUNED: Document = {
    "architecture": ARCHITECTURE,
    "id": "arch-0123456789abcdef",
    "target": "macs",
    "budget_ms": 360.9,
    "latency_ms": 360.1,
    "rounds": 10,
    "eta": 0.01,
    "accuracy": 0.91,
    "files": {"checkpoint": "pruned.safetensors"},
}

FINETUNED: Document = {
    "loss": 0.31,
    "best": 0.93,
    "recipe": {"steps": 500, "lr": 0.0003},
    "accuracy": 0.92,
    "files": {"checkpoint": "finetuned.safetensors"},
}

SPARSIFIED: Document = {
    "checkpoints": [
        {
            "file": "sparse-50.safetensors",
            "removed": 10_616_832,
            "of": 21_233_664,
            "sparsity": 0.5,
            "by_layer": {"blocks.0.attn.qkv.weight": 0.48},
            "skipped": [],
        }
    ],
    "files": {"sparse-50": "sparse-50.safetensors"},
}

TRIAL: Document = {
    "number": 17,
    "values": {"embed_dim": 128},
    "metrics": {"latency_ms": 541.3, "params": 3242728.0, "macs": 541286400.0},
    "architecture_id": "arch-0123456789abcdef",
    "architecture": ARCHITECTURE,
    "retry_of": None,
}

STUDY: Document = {
    "study": "shapes-for-2-gmacs",
    "objectives": ["latency_ms", "params"],
    "states": {"complete": 200},
    "best": [TRIAL],
    "asks": {"make": "redistribute", "target": "macs"},
}

EXPORTED: Document = {"format": "onnx", "difference": 1e-6, "files": {"onnx": "model.onnx"}}
