"""llama.cpp's models, contexts and images, as the programs beside this one use them: on the processor alone, with flash
attention."""

import ctypes

import llama_cpp as llama
from llama_cpp import mtmd_cpp as mtmd

FLASH_ATTENTION_ON = 1
# Tokens that are computed at once, as llama.cpp's own programs have it.
UBATCH = 512
SIDE = 896
IMAGE_TOKENS = 256


@llama.llama_log_callback
def quiet(level, text, user):
    pass


llama.llama_log_set(quiet, ctypes.c_void_p(0))
llama.llama_backend_init()


def system():
    return llama.llama_print_system_info().decode().strip()


def load(path):
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(path.encode(), params)
    assert model, f"llama.cpp does not load {path}"
    return model


def context_params(threads):
    params = llama.llama_context_default_params()
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = FLASH_ATTENTION_ON
    return params


def new_context(model, params):
    made = llama.llama_init_from_model(model, params)
    assert made, "llama.cpp makes no context"
    return made


def decode(ctx, batch, rows):
    """rows: token, position, sequence, whether its logits are wanted."""
    batch.n_tokens = len(rows)
    for at, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[at], batch.pos[at] = token, position
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.logits[at] = wanted
    assert llama.llama_decode(ctx, batch) == 0


class Images:
    """Encodes one picture again and again; `words` is a model of the right width that has a vocabulary."""

    def __init__(self, path, words, threads, side=SIDE):
        model = load(words)
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.warmup = False, False, False
        params.n_threads, params.flash_attn_type = threads, FLASH_ATTENTION_ON
        self.ctx = mtmd.mtmd_init_from_file(path.encode(), model, params)
        assert self.ctx, f"llama.cpp does not load {path}"
        self.side = side
        pixels = bytes((at // 3) % 251 for at in range(3 * side * side))
        self.pixels = (ctypes.c_ubyte * len(pixels)).from_buffer_copy(pixels)

    def chunk(self):
        """The picture, made ready for the encoder: a part of `self.chunks`, which lives as long."""
        bitmap = mtmd.mtmd_bitmap_init(self.side, self.side, self.pixels)
        self.chunks = mtmd.mtmd_input_chunks_init()
        words = mtmd.mtmd_input_text()
        words.text, words.add_special, words.parse_special = mtmd.mtmd_default_marker(), False, True
        words.text_len = len(words.text)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        assert mtmd.mtmd_tokenize(self.ctx, self.chunks, ctypes.byref(words), bitmaps, 1) == 0
        mtmd.mtmd_bitmap_free(bitmap)
        count = mtmd.mtmd_input_chunks_size(self.chunks)
        all_chunks = [mtmd.mtmd_input_chunks_get(self.chunks, at) for at in range(count)]
        chunk = next(chunk for chunk in all_chunks if mtmd.mtmd_input_chunk_get_type(chunk) == 1)
        assert mtmd.mtmd_input_chunk_get_n_tokens(chunk) == IMAGE_TOKENS
        return chunk

    def encode(self, chunk):
        assert mtmd.mtmd_encode_chunk(self.ctx, chunk) == 0

    def read(self, ctx, sequence, position):
        """Makes the picture ready, encodes it, and has the language model read it at this position of a sequence."""
        chunk = self.chunk()
        self.encode(chunk)
        tokens = mtmd.mtmd_get_output_embd(self.ctx)
        end = llama.llama_pos(0)
        nothing = mtmd.mtmd_helper_post_decode_callback()
        read = mtmd.mtmd_helper_decode_image_chunk(
            self.ctx, ctx, chunk, tokens, position, sequence, UBATCH, ctypes.byref(end), nothing, None
        )
        assert read == 0 and end.value == position + IMAGE_TOKENS
        mtmd.mtmd_input_chunks_free(self.chunks)
