"""Writes a LoRA adapter with random weights: python make_adapter.py MODEL.gguf FILE.gguf SEED [WIDTH]

Keys and tensors are those that llama.cpp's convert_lora_to_gguf.py writes: for each weight a pair `.lora_a` (rank by
inputs) and `.lora_b` (outputs by rank). WIDTH stands in for the model's own number of inputs: such an adapter fits no
model of another width.
"""

import sys

import gguf
import numpy as np

RANK = 8
ALPHA = 16.0
# So strong that answers differ from the first few tokens on.
STRENGTH = 0.03


def main() -> None:
    model, file, seed = sys.argv[1:4]
    reader = gguf.GGUFReader(model)
    architecture = reader.fields["general.architecture"].contents()
    random = np.random.default_rng(int(seed))
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, ALPHA)
    writer.add_name(f"random {seed}")
    for tensor in reader.tensors:
        if not tensor.name.endswith(("attn_q.weight", "attn_v.weight", "ffn_down.weight")):
            continue
        # GGUF has the inputs first.
        inputs, outputs = (int(n) for n in tensor.shape)
        if len(sys.argv) > 4:
            inputs = int(sys.argv[4])
        low = (random.standard_normal((RANK, inputs)) * STRENGTH).astype(np.float32)
        high = (random.standard_normal((outputs, RANK)) * STRENGTH).astype(np.float32)
        writer.add_tensor(f"{tensor.name}.lora_a", low)
        writer.add_tensor(f"{tensor.name}.lora_b", high)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
