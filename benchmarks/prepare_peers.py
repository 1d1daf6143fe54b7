"""Writes the model in the forms that the peers read; runs in their environment.

python -m benchmarks.prepare_peers SOURCE_FOLDER TARGET_FOLDER
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel


class _TokenVectors(torch.nn.Module):  # type: ignore[misc]
    """The network with a mask that the exporter can follow."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.network = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """Token vectors `[n, width, hidden]`."""
        shut = (1 - attention_mask.float())[:, None, None, :] * -1e4
        return self.network(
            input_ids=input_ids,
            attention_mask=shut.expand(-1, 1, input_ids.shape[1], -1),
            token_type_ids=token_type_ids,
        ).last_hidden_state


def _mend_tokenizer(folder: Path, limit: int) -> None:
    """Lets fastembed read as many tokens as the others: the file cuts and pads at 128 by itself."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["padding"] = None
    tokenizer["truncation"]["max_length"] = limit
    path.write_text(json.dumps(tokenizer))
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    config_path.write_text(json.dumps({**config, "model_max_length": limit, "max_length": limit}))


def main() -> None:
    """Copies the folder, then adds openvino/ and onnx/ beside the weights."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    model = SentenceTransformer(str(target), device="cpu", backend="openvino")
    model.save_pretrained(str(target))
    _mend_tokenizer(target, model.max_seq_length)
    (target / "onnx").mkdir()
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.ones(2, 16, dtype=torch.int64)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            _TokenVectors(source),
            (ids, ids, torch.zeros_like(ids)),
            target / "onnx" / "model.onnx",
            input_names=inputs,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "n", 1: "width"} for name in [*inputs, "last_hidden_state"]},
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    main()
