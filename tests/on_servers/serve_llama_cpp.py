"""Make a GGUF file of a model and serve it: what a run with llama.cpp starts for each model.

    python serve_llama_cpp.py LLAMA_CPP MODEL HOST PORT

LLAMA_CPP is its source folder, with `build/bin/llama-server` in it. The conversion is llama.cpp's
own, which knows a tokenizer by a hash: here it is told that this one splits as GPT-2's does.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    source, model, host, port = sys.argv[1:]
    sys.path.insert(0, source)
    import convert_hf_to_gguf  # type: ignore[import-not-found]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    def absent(_: Any) -> None:
        raise FileNotFoundError

    TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    # No SentencePiece: what is left is byte-level BPE.
    TextModel._set_vocab_sentencepiece = TextModel._set_vocab_llama_hf = absent
    file = Path(tempfile.mkdtemp()) / "model.gguf"
    sys.argv = ["convert", model, "--outtype", "f32", "--outfile", str(file)]
    convert_hf_to_gguf.main()
    server = f"{source}/build/bin/llama-server"
    flags = ["--parallel", "8", "--ctx-size", "8192"]
    # By default attention is in float16, and so are the keys and values that are kept.
    flags += ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]
    os.execv(server, [server, "--model", str(file), "--host", host, "--port", port, *flags])  # noqa: S606
