"""Quantizes one synthetic layer on a running server and shows what it costs.

    quantd --data_dir data &
    python quantize_layer.py 127.0.0.1:7741

The inputs have a few strong channels, as those of language models do.
"""

import argparse
import uuid

import numpy as np

import quantd


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="127.0.0.1:7741", help="HOST:PORT")
    parser.add_argument("--format", default="mxfp4", help="mxfp4, nvfp4, int4, int8 or fp8")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    rows, cols, tokens = 768, 768, 4096
    weight = (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
    strength = np.where(rng.random(cols) < 0.02, 20.0, 1.0)
    mixing = rng.standard_normal((cols, cols)) / np.sqrt(cols)
    activations = (rng.standard_normal((tokens, cols)) @ mixing * strength).astype(np.float32)

    with quantd.connect(arguments.address) as client:
        # One statistic serves every recipe.
        statistic = f"example-{uuid.uuid4().hex}"
        client.stream_activations(statistic, activations, dtype="bf16")
        client.seal_statistic(statistic)

        exact = activations @ weight.T
        for transform in ("identity", "hadamard", "wush"):
            recipe = quantd.Recipe(arguments.format, transform)
            layer = quantd.LayerSpec("layer", rows, cols, statistic=statistic)
            job = client.create_job(recipe, [layer], display_name="example")
            client.upload_weights(job, "layer", weight)
            client.wait(job)
            quantized = client.fetch(job, "layer")
            error = np.sum((quantized(activations) - exact) ** 2) / np.sum(exact**2)
            print(
                f"{transform:>9}: {quantized.bits_per_weight:.3f} bits a weight,"
                f" output error {error:.5f} measured here,"
                f" {quantized.report['relative_output_error_weight_and_activation']:.5f} reported"
            )
            client.delete_job(job)
        client.delete_statistic(statistic)


if __name__ == "__main__":
    main()
