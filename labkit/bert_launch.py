"""One fine-tuning of BERT from the command line, on one device or on many.

python -m labkit.bert_launch --corpus imdb --model google-bert/bert-base-uncased --output out
accelerate launch --multi_gpu -m labkit.bert_launch … does the same with all GPUs of a machine,
and with --num_machines, --machine_rank and --main_process_ip on several machines. Processors work
together with torchrun --nproc_per_node 2 -m labkit.bert_launch … --device cpu.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HISTORY = "history.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what the arguments say; return the exit code."""
    options = vars(_parser().parse_args(arguments))
    try:
        _run(options)
    except (ValueError, OSError) as error:
        print(f"bert_launch: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    """Settings of the model and the training that are not given keep their defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m labkit.bert_launch",
        description="Fine-tunes BERT on film reviews and writes history.json and best.safetensors.",
        epilog="All GPUs: accelerate launch --multi_gpu -m labkit.bert_launch … (a batch is shared "
        "among them). Several machines: --num_machines, --machine_rank, --main_process_ip; the "
        "folder --output must then be one that all of them see.",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder; a run that was cut off goes on in it")
    add("--model", default="google-bert/bert-base-uncased", help="name, folder or tiny")
    add("--revision", default="", help="commit of the model")
    add("--corpus", choices=["imdb", "generated"], default="imdb")
    add("--num-train", type=_count, default=0, help="reviews to train on (all)")
    add("--num-dev", type=_count, default=0, help="reviews to choose the epoch by (all)")
    add("--part", choices=["head", "tail", "head_tail"], default="head", help="of a long review")
    add("--test", choices=["held_out", "all", "none"], default="held_out")
    add("--seed", type=int, default=0)
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of the matrix products (what the device is fastest at)",
    )

    model = parser.add_argument_group("model", argument_default=argparse.SUPPRESS)
    add = model.add_argument
    add("--pooling", choices=["cls", "mean", "last_position"], help="what stands for a review")
    add("--head-sizes", type=int, nargs="*", metavar="N", help="the head's hidden layers")
    add("--dropout", type=float, help="on the pooled vector")
    add("--frozen", action="store_true", help="train the head alone")

    training = parser.add_argument_group("training", argument_default=argparse.SUPPRESS)
    add = training.add_argument
    add("--epochs", type=int)
    add("--batch-size", type=int, help="of all processes together")
    add("--lr", type=float, help="the encoder's learning rate")
    add("--head-lr", type=float, help="the head's (the same)")
    add("--schedule", choices=["linear", "constant", "halve"])
    add("--warmup", type=float, help="share of the steps in which the rate rises")
    add("--halve-every", type=int, metavar="EPOCHS")
    add("--weight-decay", type=float)
    add("--clip", type=float, help="largest L2 norm of the gradients, 0 for none")
    add("--max-len", type=int, help="word pieces of a review, [CLS] and [SEP] included")
    add("--fixed", action="store_true", help="pad every batch to --max-len")
    return parser


def _count(text: str) -> int:
    """An even number of reviews, half of either label."""
    if not text.isdigit() or int(text) % 2:
        raise argparse.ArgumentTypeError(f"must be an even number, 0 or above, got {text!r}")
    return int(text)


def _run(options: dict) -> None:
    from accelerate import Accelerator

    from labkit import bert_tasks, digests, environment, pretrained
    from labkit.bert_classifier import BertSpec, fastest_precision
    from labkit.bert_training import BertTrainSpec

    device = environment.prepare(options["seed"], options["device"])
    accelerator = Accelerator(cpu=device.type == "cpu")
    if options["precision"] == "auto":
        options["precision"] = fastest_precision(device)
    model, training = (
        {name: options[name] for name in kind.__dataclass_fields__ if name in options}
        for kind in (BertSpec, BertTrainSpec)
    )
    plain = {name: options[name] for name in ("corpus", "seed", "num_train", "num_dev", "part")}
    with accelerator.main_process_first():  # the others find what it has fetched and tokenised
        found = pretrained.find(options["model"], options["revision"])
        task = bert_tasks.training_task(
            options["output"].name,
            found=found,
            model=model,
            training=training,
            test=options["test"],
            device=options["device"],
            **plain,
        )

    is_main = accelerator.is_main_process
    arrays = bert_tasks.run_training(
        task,
        accelerator.device,
        accelerator=accelerator,
        progress=_print if is_main else None,
        keep=options["output"],
    )
    if is_main:
        history = {name: value.tolist() for name, value in arrays.items()}
        content = {"settings": task, "processes": accelerator.num_processes, "history": history}
        digests.write_atomically(options["output"] / HISTORY, digests.canonical(content))
        print(f"\nbest epoch {history['best_epoch']}: dev {max(history['dev_accuracy']):.4f}")
    accelerator.end_training()


def _print(done: int, total: int) -> None:
    print(f"\rstep {done} of {total}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
