"""The tiny checkpoint's tokenizer: Gemma's kind (BPE on spaces turned to U+2581, bytes as fallback), 600-odd entries.

Special tokens play Gemma's roles under other ids, so that an id written into the code shows itself as a bug.
"""

import json

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

SPACE = "\u2581"
FIRST = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused94>", "<unused95>", "<start_of_turn>", "<end_of_turn>"]
BREAKS = ["\n", "\n\n", "\n\n\n"]
LAST = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
NOT_SPECIAL = {"<unused94>", "<unused95>"}  # the real file marks these as ordinary added tokens
PIECES = 360

CORPUS = """
Findings: the heart size is normal and the lungs are clear. There is no pleural effusion or pneumothorax.
Impression: no acute cardiopulmonary disease. Comparison with the prior study shows a new opacity in the right lower lobe.
Describe this chest radiograph. Compare the current image with the prior one and say what has changed. Is there a fracture?
The mediastinal contours are within normal limits. A small nodule is seen in the left upper lobe. Recommend follow up CT.
Mild degenerative changes of the thoracic spine. The endotracheal tube ends above the carina. User model question answer.
You are an expert radiologist. What is the most likely diagnosis? The costophrenic angles are sharp and the hila are not enlarged.
"""

CHAT_TEMPLATE = """{{- bos_token -}}
{%- set lead = namespace(text='') -%}
{%- if messages and messages[0].role == 'system' -%}
  {%- set first = messages[0].content -%}
  {%- set lead.text = (first if first is string else first[0].text) + '\\n\\n' -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for turn in messages -%}
  {%- if (turn.role == 'user') != (loop.index0 is divisibleby 2) -%}
    {{- raise_exception('user and assistant must take turns, user first') -}}
  {%- endif -%}
  {{- '<start_of_turn>' ~ ('model' if turn.role == 'assistant' else turn.role) ~ '\\n' -}}
  {%- if loop.first -%}{{- lead.text -}}{%- endif -%}
  {%- if turn.content is string -%}
    {{- turn.content | trim -}}
  {%- else -%}
    {%- for part in turn.content -%}
      {{- '<start_of_image>' if part.type == 'image' else part.text | trim -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


def shape(tokenizer):
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def learn():
    """Pieces and merges from the corpus, merges in order of rank."""
    learner = Tokenizer(BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    # Words with the space in front; the pieces never span a space.
    learner.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    printable = [chr(c) for c in range(33, 127)] + [SPACE]
    trainer = BpeTrainer(vocab_size=PIECES, initial_alphabet=printable, limit_alphabet=len(printable), show_progress=False)
    learner.train_from_iterator([line for line in CORPUS.splitlines() if line], trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    return pieces, [tuple(merge) for merge in model["merges"]]


def build_tokenizer():
    pieces, merges = learn()
    entries = FIRST + BREAKS + [f"<0x{b:02X}>" for b in range(256)] + [p for p in pieces if p not in BREAKS] + LAST
    vocab = {entry: i for i, entry in enumerate(entries)}
    assert len(vocab) == len(entries)
    tokenizer = shape(Tokenizer(BPE(vocab=vocab, merges=merges, fuse_unk=True, unk_token="<unk>", byte_fallback=True)))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in FIRST + LAST if t not in NOT_SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in [*sorted(NOT_SPECIAL), *BREAKS]])
    return tokenizer
