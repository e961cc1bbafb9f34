"""Train the small model in Python, read what came out, and draw with it.

    python examples/01_quickstart.py                      # five minutes on two cores
    python examples/01_quickstart.py run.iterations=20    # any key of the config

The model learns to write the number that its prompt asks for, as an OCR network reads it.
"""

import sys

import branchgrpo as bg


def main() -> None:
    overrides = dict(argument.split("=", 1) for argument in sys.argv[1:])
    # a shipped config, a method's preset, and keys on top of both
    config = bg.load_config("quickstart", preset="nft-flash", overrides=overrides)

    result = bg.train(config)

    # what the held-out prompts scored before and after; more is in summary.json
    for name, score in result.summary["held_out"].items():
        print(f"{name}: {score['before']:.3f} → {score['after']:.3f}")
    # one record an iteration, as in metrics.jsonl
    rewards = [record["reward/total"] for record in result.metrics if "reward/total" in record]
    print(f"reward of the first iteration {rewards[0]:.3f}, of the last {rewards[-1]:.3f}")

    picture = result.sample("the number 38 in black on yellow", seed=1)[0]
    picture.resize((256, 256)).save(result.folder / "38.png")
    print(f"drawn: {result.folder / '38.png'}; the weights: {result.folder / 'weights'}")


if __name__ == "__main__":
    main()
