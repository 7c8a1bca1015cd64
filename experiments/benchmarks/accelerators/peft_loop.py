"""The alternative on the same device: one client after another in PyTorch and PEFT."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from experiments.benchmarks.accelerators.rounds import encoder_work
from experiments.benchmarks.backbones import BACKBONES, RATE, Work
from fedjax_lora.models import EncoderConfig

Record = dict[str, Any]

RANKS = (4, 8, 16, 32)


def peft(*, tiny: bool) -> Iterator[tuple[str, Callable[[], Record]]]:
    """The work of the part ``encoder``."""
    yield "encoder", functools.partial(_measure, encoder_work(tiny=tiny), tiny=tiny)


def _measure(work: Work, *, tiny: bool) -> Record:
    import torch

    if not (tiny or torch.cuda.is_available()):
        raise RuntimeError("this PyTorch has no GPU")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = _network(work).to(device)
    ids = torch.randint(5, 90, (work.batch, work.length), device=device)
    label = torch.randint(0, 4, (work.batch,), device=device)

    def round() -> float:
        began = time.perf_counter()
        for client in range(work.clients):
            net.set_adapter(f"r{RANKS[client % len(RANKS)]}")
            trained = [p for p in net.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
            for _ in range(work.steps):
                with torch.autocast(device, dtype=torch.bfloat16):
                    logits = net(input_ids=ids).logits
                loss = torch.nn.functional.cross_entropy(logits.float(), label)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    first, each = round(), min(round() for _ in range(2))
    return {
        "device": device,
        "torch": torch.__version__,
        "first_seconds": first,
        "seconds": each,
        "tokens_per_second": work.tokens / each,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def _network(work: Work) -> Any:
    """A classifier in the shape of the work's backbone, with an adapter for each rank."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    shape: Any = BACKBONES[work.backbone]
    assert isinstance(shape, EncoderConfig)
    named: Any = transformers.RobertaConfig
    config = named(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.intermediate,
        max_position_embeddings=shape.max_positions, type_vocab_size=1, num_labels=4,
        attn_implementation="sdpa",
    )  # fmt: skip
    made: Any = transformers.RobertaForSequenceClassification(config)
    net = made.to(torch.bfloat16)
    for rank in RANKS:
        lora = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=["query", "value"],
            modules_to_save=["classifier"],
        )  # fmt: skip
        if rank == RANKS[0]:
            net = get_peft_model(net, lora, adapter_name=f"r{rank}")
        else:
            net.add_adapter(f"r{rank}", lora)
    return net.eval()  # no dropout; gradients flow all the same
