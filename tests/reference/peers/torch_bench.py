"""Hugging Face transformers on PyTorch, on what `medfleet bench model` does with the same checkpoint.

    python torch_bench.py CHECKPOINT --dtype bf16 --threads 2
"""

import torch
import transformers
from samples import Samples, options_parser

parser = options_parser()
parser.add_argument("checkpoint")
parser.add_argument("--dtype", choices=["f32", "bf16"], required=True)
options = parser.parse_args()

torch.set_num_threads(options.threads)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
model = transformers.Gemma3ForConditionalGeneration.from_pretrained(
    options.checkpoint, dtype=dtype, attn_implementation="sdpa"
).eval()
about = f"transformers {transformers.__version__}, sdpa, {torch.backends.cpu.get_cpu_capability()}"
samples = Samples(options, peer="PyTorch", version=f"torch {torch.__version__}", dtype=options.dtype, about=about)

with torch.inference_mode():
    side = model.config.vision_config.image_size
    pixels = torch.rand(1, 3, side, side).to(dtype)
    samples.measure("image encoded", lambda: model.get_image_features(pixels), options.repeat)

    def read(batch, length):
        ids = torch.arange(1024, 1024 + length).repeat(batch, 1)
        return model(input_ids=ids, use_cache=True, logits_to_keep=1)

    samples.measure("prompt read", lambda: read(1, options.prompt), options.repeat)
    for count in options.batch:
        state = read(count, options.begin)

        def step():
            global state
            ids = state.logits[:, -1].argmax(-1, keepdim=True).clamp(min=1024, max=200_000)
            state = model(input_ids=ids, past_key_values=state.past_key_values, use_cache=True)

        samples.measure(f"step of {count}", step, options.steps)
