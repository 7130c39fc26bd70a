"""Documents that the interface's documentation shows. The tests send the requests and compare the shapes."""

from typing import Any

Document = dict[str, Any]

BLOCK: Document = {"num_heads": 6, "qk_dim": 32, "v_dim": 64, "mlp_dim": 1152}

ARCHITECTURE: Document = {
    "image_size": [224, 224],
    "patch_size": [16, 16],
    "in_chans": 3,
    "num_classes": 1000,
    "embed_dim": 384,
    "blocks": [BLOCK, BLOCK],
}

PROVENANCE: Document = {
    "kind": "modelled",
    "created_at": "2026-01-31T09:00:00Z",
    "method": "physical model calibrated on published figures",
    "device": "NVIDIA V100",
    "driver": "",
    "clocks": "",
    "versions": {},
    "created_by": "vitfit",
    "source": "NViT poster (CVPR 2023)",
    "license": "",
    "quality": {"held_out_error": 0.04},
    "interval": [0.95, 1.06],
}

BOUNDS: Document = {
    "embed_dim": [64, 768],
    "num_heads": [1, 12],
    "qk_dim": [8, 64],
    "v_dim": [8, 64],
    "mlp_dim": [16, 3072],
}

TARGET: Document = {
    "target": "v100-eager-amp-b256-n197",
    "device": "v100",
    "runtime": "eager",
    "dtype": "amp",
    "batch": 256,
    "tokens": 197,
    "kind": "modelled",
    "unit": "ms",
    "norm": "layer",
    "bounds": BOUNDS,
    "provenance": PROVENANCE,
    "file": "shipped/v100-eager-amp-b256-n197.parquet",
}

TARGETS: Document = {
    "targets": [TARGET],
    "modelled_devices": ["v100-eager-amp"],
    "unreadable": [{"file": "a100.parquet", "error": "a100.parquet is no readable Parquet file (truncated)"}],
}

PRESETS: Document = {
    "presets": [
        {
            "preset": "deit-s",
            "id": "arch-0123456789abcdef",
            "architecture": ARCHITECTURE,
            "params": 22050664,
            "macs": 4607954304,
        }
    ],
    "published": [
        {
            "name": "ReViT-S",
            "params_m": 23.0,
            "macs_g": 4.7,
            "top1": 81.22,
            "speedup": {"v100": 2.31},
            "source": "NViT poster (CVPR 2023), parameter redistribution table",
            "preset": "revit-s",
        }
    ],
}

SALIENCIES: Document = {
    "saliencies": [
        {
            "saliency": "deit-s-gates",
            "criterion": "gates",
            "model": "deit_small_patch16_224",
            "data": "sha256:5f70bf18",
            "num_batches": 8,
            "id": "arch-0123456789abcdef",
            "architecture": ARCHITECTURE,
            "params": 22050664,
            "macs": 4607954304,
            "file": "deit-s-gates.safetensors",
        }
    ],
    "unreadable": [],
}

ESTIMATE_REQUEST: Document = {
    "targets": ["macs"],
    "architectures": [{"preset": "deit-s"}, ARCHITECTURE],
    "components": True,
}

ESTIMATE_RESPONSE: Document = {
    "targets": [
        {"target": "v100-eager-amp-b256-n197", "batch": 256, "kind": "modelled", "unit": "ms", "provenance": PROVENANCE}
    ],
    "architectures": [
        {
            "id": "arch-0123456789abcdef",
            "params": 3242728,
            "macs": 541286400,
            "estimates": [
                {
                    "target": "v100-eager-amp-b256-n197",
                    "kind": "modelled",
                    "latency_ms": 21.5,
                    "interval_ms": [20.4, 22.8],
                    "block_ms": [9.8, 9.8],
                    "outside_ms": 1.9,
                    "notes": [],
                    "components": {
                        "basis": "modelled",
                        "method": "split by the closed form of the device: the MACs and bytes of each part; ...",
                        "attn_ms": [4.5, 4.5],
                        "mlp_ms": [3.1, 3.1],
                        "rest_ms": [2.2, 2.2],
                        "qk_ms": [1.2, 1.2],
                        "v_ms": [1.2, 1.2],
                        "products_ms": [2.1, 2.1],
                    },
                }
            ],
        }
    ],
}

SEARCH_REQUEST: Document = {
    "saliency": "deit-s-gates",
    "target": "macs",
    "speedup": 2.0,
    "multiples": {"mlp_dim": 16},
    "minimum": {"mlp_dim": 16},
}

STAIRCASE_REQUEST: Document = {
    "saliency": "deit-s-gates",
    "target": "macs",
    "multiples": {"mlp_dim": 16},
    "minimum": {"mlp_dim": 16},
}

SEARCH_TARGETS: list[Document] = [
    {"target": "v100-eager-amp-b256-n197", "budget_ms": 50.0},
    {"target": "amd-epyc-1t-eager-fp32-b1-n197", "budget_ms": 60.0},
]

SEARCHED_TARGET: Document = {
    "target": "v100-eager-amp-b256-n197",
    "unit": "ms",
    "latency_ms": 49.9,
    "interval_ms": [47.4, 52.9],
    "budget_ms": 50.0,
    "full_ms": 100.0,
    "kind": "modelled",
    "provenance": PROVENANCE,
    "notes": [],
}

SEARCH_RESPONSE: Document = {
    "id": "arch-0123456789abcdef",
    "architecture": ARCHITECTURE,
    "params": 3242728,
    "macs": 541286400,
    "saliency": "deit-s-gates",
    "kept": 0.931,
    "bound": 0.932,
    "targets": [SEARCHED_TARGET],
    **SEARCHED_TARGET,
}

REDISTRIBUTE_REQUEST: Document = {"embed_dim": 384}

REDISTRIBUTED: Document = {
    "target": "v100-eager-amp-b256-n197",
    "unit": "ms",
    "latency_ms": 49.9,
    "interval_ms": [47.4, 52.9],
    "budget_ms": 50.0,
    "kind": "modelled",
    "provenance": PROVENANCE,
    "notes": [],
}

REDISTRIBUTE_RESPONSE: Document = {
    "id": "arch-0123456789abcdef",
    "architecture": ARCHITECTURE,
    "params": 23123280,
    "macs": 4705190400,
    "profile": "nvidia",
    "latency": REDISTRIBUTED,
    "targets": [REDISTRIBUTED],
}

COMPRESS_JOB: Document = {
    "kind": "compress",
    "model": "deit-s-flowers",
    "data": "flowers",
    "target": "macs",
    "speedup": 1.5,
    "minimum": {"mlp_dim": 16},
}

JOB: Document = {
    "id": "019aa6f1c2d34e5f60718293a4b5c6d7",
    "kind": "compress",
    "state": "running",
    "request": COMPRESS_JOB,
    "progress": {"stage": "saliency", "done": 512, "total": 1024},
    "created_at": "2026-01-31T09:00:00Z",
}

FAILED_JOB: Document = JOB | {
    "state": "failed",
    "finished_at": "2026-01-31T09:01:00Z",
    "error": {
        "type": "/problems/refused",
        "title": "The request cannot be carried out",
        "status": 422,
        "detail": "datasets/flowers has no folder train/; needed are train/ and val/ (or test/)",
        "instance": "/v1/jobs/019aa6f1c2d34e5f60718293a4b5c6d7",
    },
}

COMPRESSED: Document = {
    "model": "models/deit-s-flowers.safetensors",
    "criterion": "gates",
    "labels": "model",
    "constraints": {
        "multiples": {"embed_dim": 8, "num_heads": 1, "qk_dim": 8, "v_dim": 8, "mlp_dim": 8},
        "minimum": {"mlp_dim": 16},
        "equal_blocks": False,
        "protect": [],
        "protect_sizes": [],
    },
    "ridge": 0.001,
    "finetune": 0,
    "calibration": {"data": "datasets/flowers", "fingerprint": "5f70bf18a0860070", "images": 1024},
    "before": {"id": "arch-fedcba9876543210", "architecture": ARCHITECTURE, "params": 22050664, "macs": 4607954304},
    "after": {"id": "arch-0123456789abcdef", "architecture": ARCHITECTURE, "params": 3242728, "macs": 541286400},
    "target": "v100-eager-amp-b256-n197",
    "kind": "modelled",
    "provenance": PROVENANCE,
    "full_ms": 100.0,
    "also": [],
    "budget_ms": 66.7,
    "latency_ms": 66.5,
    "interval_ms": [63.2, 70.5],
    "notes": [],
    "kept": 0.991,
    "bound": 0.991,
    "gap": 0.0001,
    "skipped": [],
    "warnings": [],
    "refits": [{"layer": "blocks.0.attn.qkv", "before": 0.08, "after": 0.03}],
    "accuracy": {"before": 0.918, "after": 0.912, "images": 2000},
    "seconds": {"basis": 60.1, "saliency": 41.5, "frontier": 0.9, "refit": 140.2, "evaluate": 20.0, "measure": 0.0},
    "files": {
        "checkpoint": "compressed.safetensors",
        "onnx": "compressed.onnx",
        "report": "compressed.report.json",
        "torch": "compressed-torch",
    },
}

DONE_JOB: Document = JOB | {
    "state": "done",
    "finished_at": "2026-01-31T09:05:00Z",
    "result": COMPRESSED,
    "files": {
        "checkpoint": "/v1/jobs/019aa6f1c2d34e5f60718293a4b5c6d7/files/compressed.safetensors",
        "report": "/v1/jobs/019aa6f1c2d34e5f60718293a4b5c6d7/files/compressed.report.json",
    },
}

CATALOGUE_FIND: Document = {"target": "macs", "budget_ms": 3000.0, "data": "imagenet-1k", "limit": 5}

CATALOGUE_ENTRY: Document = {
    "entry": 31,
    "name": "ReViT-T",
    "kind": "published",
    "architecture_id": "arch-0123456789abcdef",
    "parent": None,
    "params": 5339136,
    "macs": 1135290112,
    "source": "NViT poster (CVPR 2023), parameter redistribution table",
    "figures": {"params_m": 5.9, "macs_g": 1.3, "speedup": {"v100": 4.75}},
    "created_at": "2026-01-31T09:00:00+00:00",
    "latency_ms": 1135.290112,
    "accuracies": [
        {
            "data": "imagenet-1k",
            "value": 0.742,
            "evidence": "published",
            "recipe": "NViT poster (CVPR 2023), parameter redistribution table",
            "seeds": [],
            "images": None,
        }
    ],
}

CATALOGUE_COMPARED: Document = {
    "a": "arch-0123456789abcdef",
    "b": "arch-fedcba9876543210",
    "latency_ms": [4598.9, 4705.2],
    "cheaper": "a",
    "dimensions": [
        {"dimension": "params", "a": 22050664, "b": 23123280, "same": False},
        {"dimension": "blocks[0].num_heads", "a": 6, "b": 10, "same": False},
    ],
}

CATALOGUE_ANSWERS: Document = {
    "target": "macs",
    "unit": "million MACs",
    "kind": "analytic",
    "answers": [
        {
            "answered_by": "catalogue",
            "detail": "ReViT-T",
            "latency_ms": 1135.290112,
            "id": "arch-0123456789abcdef",
            "architecture": None,
            "kept": None,
            "bound": None,
            "entry": CATALOGUE_ENTRY,
        },
        {
            "answered_by": "redistributed",
            "detail": "nvidia",
            "latency_ms": 2980.1,
            "id": "arch-fedcba9876543210",
            "architecture": ARCHITECTURE,
            "kept": None,
            "bound": None,
            "entry": None,
        },
    ],
}
