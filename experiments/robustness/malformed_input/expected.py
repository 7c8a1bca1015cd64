"""What the sentence about each kind of case has to say.

A refusal for another reason than the defect is a wrong refusal, although it is one sentence: it
sends the user to the wrong place. Rules name where the defect is and what it is, as patterns of the
sentence by patterns of the name of a case; the first rule that fits a name holds.
"""

import re
from collections.abc import Mapping, Sequence

Rules = Sequence[tuple[str, str]]

_NO_JSON = r"is not JSON"
_NO_TEXT = r"is not UTF-8 text"
_NO_HEADER = r"no column 'text'; no column 'label'"
_NO_ROWS = r"Task 'file' has no training examples at all"
_BINARY = r"an image|a zip archive|a pickle|latin-1|utf-16"
_TEXT = r"zeros|a web page|a Git LFS pointer"
_NOTHING = r"empty|a byte order mark only"
_SPECIAL = r"a pipe|a link to itself|an endless device"

_TABLES: Rules = (
    # Every format.
    (r"\w+: no file", r"data has none of train\.\w+"),
    (r"\w+: a folder", r"train\.\w+ is a folder, but none that datasets has saved"),
    (rf"\w+: ({_SPECIAL})",
     r"train\.\w+ is no regular file, but a broken link, a pipe or a device"),
    # csv and tsv.
    (rf"[ct]sv: ({_NOTHING}|{_TEXT}|neither column|json|a header in capitals)", _NO_HEADER),
    (rf"[ct]sv: ({_BINARY}|.*UTF-8.*|utf-32|latin-1.*|parquet)", _NO_TEXT),
    (r"csv: only a header", _NO_ROWS),
    (r"csv: no column of texts", r"no column 'text' \("),
    (r"csv: no column of labels", r"no column 'label' \("),
    (r"csv: a column twice", r"column 'text' occurs twice"),
    (r"csv: semicolons", r"delimiter=';' may be meant"),
    (r"csv: tabs", r"delimiter='\\t' may be meant"),
    (r"csv: a field too few", r"row 26 has 1 fields where 2 are expected"),
    (r"csv: (a field too many|a comma that is not quoted)", r"row 26 has 3 fields where 2 are"),
    (r"csv: (a quote that never ends|text after a quote)", r"row 26 is not well-formed .*quotes"),
    (r"csv: an empty text", r"row 26: column 'text' is empty"),
    (r"csv: an empty label", r"row 26: column 'label' is empty"),
    (r"csv: (a blank|an invisible) label", r"row 26: column 'label' is blank"),
    (r"csv: a text of 17 million characters", r"row 26 has a field of more than 16777216"),
    (r"csv: a line of 17 million characters", r"line 26 has more than 16777216 characters"),
    (r"csv: one row", r"4 clients with at least 2 examples each need 8 examples, but there are 1"),
    (r"csv: fewer rows than clients", r"need 8 examples, but there are 2"),
    # jsonl.
    (rf"jsonl: ({_NOTHING}|no row)", _NO_ROWS),
    (rf"jsonl: ({_BINARY})", _NO_TEXT),
    (r"jsonl: (one array of objects|a number$|a string|null)", r"row 1 is not a JSON object"),
    (r"jsonl: no text", r"row 1: no column 'text'"),
    (r"jsonl: no label", r"row 1: no column 'label'"),
    (r"jsonl: a text that is", r"row 1: column 'text' holds .*, not a text or number"),
    (r"jsonl: a label that is", r"row 1: column 'label' holds .*, not a text or number"),
    (r"jsonl: a lone surrogate as a label", r"row 25: column 'label' holds half a character"),
    (r"jsonl: a lone surrogate", r"row 25: column 'text' holds half a character"),
    (r"jsonl: a line of 17 million characters", r"line 25 has more than 16777216 characters"),
    (r"jsonl: an empty text", r"row 25: column 'text' is empty"),
    (r"jsonl: a label of spaces", r"row 25: column 'label' is blank"),
    (r"jsonl: a conversation", r"'messages' are the task conversations"),
    (r"jsonl: a number of 5,000 digits", r"row 1 is not JSON \(Exceeds the limit"),
    (r"jsonl: (nested|objects nested)", r"row 1 is not JSON \(maximum recursion depth"),
    (r"jsonl: a trailing comma", r"row 1 is not JSON \(Illegal trailing comma"),
    (r"jsonl: two objects in a line", r"row 1 is not JSON \(Extra data"),
    (r"jsonl: an? (unknown|incomplete) escape", r"row 1 is not JSON \(Invalid .*escape"),
    (r"jsonl: a control character", r"row 1 is not JSON \(Invalid control character"),
    (r"jsonl: ", rf"row 1 {_NO_JSON}"),
    # parquet.
    (r"parquet: no column at all", _NO_HEADER),
    (r"parquet: no column of texts", r"no column 'text' \("),
    (r"parquet: no column of labels", r"no column 'label' \("),
    (r"parquet: no rows", _NO_ROWS),
    (r"parquet: (texts that are|a text that is missing)", r"row 1: column 'text' holds"),
    (r"parquet: a label that is missing", r"row 24: column 'label' holds None"),
    (r"parquet: (labels that are|a label that is)", r"row 1: column 'label' holds"),
    (r"parquet: a text that is empty", r"row 1: column 'text' is empty"),
    (r"parquet: a class label without a name", r"row 3: the label 2 in column 'label' is not one"),
    (r"parquet: a class label that is -1", r"row 1: the label -1 \(unlabelled\)"),
    (r"parquet: a class name twice", r"states the class 'yes' twice"),
    (r"parquet: a text of 10,000 characters", r"holds more than 4294967296 bytes unpacked"),
    (r"parquet: ", r"train\.parquet is not a parquet file"),
    # Compressed files.
    (r"csv\.\w+: a decompression bomb", r"holds more than \d+ bytes unpacked"),
    (r"csv\.\w+: compressed twice", _NO_TEXT),
    (r"csv\.gz: empty", _NO_HEADER),
    (r"csv\.gz: not compressed", r"cannot be read \(Not a gzipped file"),
    (r"csv\.xz: not compressed", r"cannot be read \(Input format not supported"),
    (r"csv\.\w+: all bits", r"cannot be read \((Error -3 while decompressing|Corrupt input)"),
    (r"csv\.\w+: ", r"cannot be read \(Compressed file ended before"),
    (r"parquet\.gz: not compressed", r"cannot be read \(Not a gzipped file"),
    (r"parquet\.gz: truncated", r"cannot be read \(Compressed file ended before"),
    (r"parquet\.gz: garbage", r"is not a parquet file"),
    # Labels and specs.
    (r"a class only in the test file", r"other\.csv row 2: the label 'maybe' is not one of the 2"),
    (r"a score that is (words|NaN)", r"row 9: the score is '(good|nan)', not a number"),
    (r"a score that is nothing", r"row 9: column 'label' is empty"),
    (r"a score that is (infinity|more)", r"row 9: the score is '.*', more than float32 holds"),
    (r"a task with (no file name|an empty list of files)", r"file\(\.\.\.\) needs files"),
    (r"a task with a name of 5,000", r"data has none of n{50}"),
    (r"a task with a name with a zero byte", r"data has none of a\\x00\.csv"),
    (r"a task with a path out of", r"data has none of \.\./nothing\.csv"),
    (r"a task with an unknown ending", r"Unknown file format \(of .*train\.xls\) 'xls'"),
    (r"a task with an unknown format", r"Unknown file format \(of .*\) 'excel'"),
    (r"a task with another format", r"train\.csv is not a parquet file"),
    (r"a task with an unknown metric", r"Unknown metric 'bleu'"),
    (r"a task with a missing column", r"no column 'words'"),
    (r"a task with a missing group column", r"no column 'who'"),
    (r"a task with a missing pair column", r"no column 'other'"),
    (r"a task with a (number as a file|list with a number)", r"task 'file': train is str"),
    (r"a task with (a list with a missing|a missing test)", r"data has none of none\.csv"),
    (r"a task with a function call", r"option values must be literals"),
    (r"a task with a number as a column", r"text is str, got 1"),
    (r"a task with a delimiter of two", r"The delimiter is ';;'; give one character"),
    (r"a task with another delimiter", r"delimiter=',' may be meant"),
    (r"a task with a delimiter for json", r"only for csv and tsv"),
    (r"a task with (an unknown encoding|a codec)", r"Unknown encoding '(utf-9|zlib)'"),
    (r"a task with another encoding", r"train\.csv is not utf-16 text"),
    (r"a task with a folder as a file", r"data is a folder, but none that datasets has saved"),
    (r"a task with a web address", r"https://.* is an address, and files are read; download it"),
    (r"a missing data folder", r"/no/such has none of train\.csv .*--data-dir"),
    (r"a data folder of 5,000 characters", r"^fedjax-lora: /n{50}"),
)  # fmt: skip

_CONVERSATIONS: Rules = (
    (r"another column|a preference", r"row 1: no column 'messages'"),
    (r"a text|a JSON text", r"row 1: column 'messages' holds a text, not a list of messages"),
    (r"a prompt that is a text", r"row 1: column 'prompt' holds a text, not a list of messages"),
    (r"null", r"row 1: column 'messages' holds None, not a list of messages"),
    (r"a message that is a text", r"row 1: message 2 .* is 'hi', not an object with role"),
    (r"a message without a role", r"row 1: message 2 .* is by None; the roles that are read are"),
    (r"a message of a tool", r"row 1: message 2 .* is by 'tool'; the roles that are read are"),
    (r"an answer that is", r"row 1: message 2 .* holds (None|7), not a text"),
    (r"an image", r"row 1: message 2 .* has a part of type 'image_url'"),
    (r"a call of a tool", r"row 1: message 2 .* calls a tool"),
    (r"a thought", r"row 1: message 2 .* has 'reasoning_content', which is not read"),
    (r"half a weight", r"row 1: message 2 .*: weight is 0\.5"),
    (r"tools", r"row 1 has a column 'tools' that is not empty"),
    (r"documents", r"row 1 has a column 'documents' that is not empty"),
    (r"options of a template", r"row 1 has a column 'chat_template_kwargs' that is not empty"),
    (r"two system turns", r"row 1: the column 'system' is no text, or there is a system turn too"),
    (r"a lone surrogate", r"row 1: message 2 .* holds half a character"),
)

_NO_WEIGHTS = r"model holds no weights: no model\.safetensors"
_NO_FIT = r"The weights in .*model do not fit the bert that its config\.json describes: "
_SAFETENSORS: Rules = (
    (rf"no file|a folder|{_SPECIAL}", _NO_WEIGHTS),
    (r"a missing tensor", rf"{_NO_FIT}missing encoder\.layer\.0\.attention\.self\.query\.weight"),
    (r"a header without tensors|names of another model", rf"{_NO_FIT}missing embeddings"),
    (r"an unexpected tensor", rf"{_NO_FIT}unexpected extra"),
    (r"a tensor with an empty name", rf"{_NO_FIT}unexpected "),
    (r"a tensor twice", r"'encoder\.layer\.0\..*query\.weight' is stored twice"),
    (r"a tensor that is too small", r"query\.weight is stored as \(32, 31\) but must be"),
    (r"shape of \[1024\]", r"query\.weight is stored as \(1024,\) but must be \(32, 32\)"),
    (r"shape of \[32, 32, 1\]", r"query\.weight is stored as \(32, 32, 1\) but must be"),
    (r"a tensor of integers", r"query\.weight is stored as I64, not as floating-point"),
    (r"a tensor of (NaN|infinity)", r"numbers that are not finite: .*query\.weight"),
    (r"", r"model\.safetensors is not a readable safetensors file"),
)

_NO_INDEX = r"index\.json is not a safetensors index with a weight_map"
_INDEX: Rules = (
    (r"a (folder|pipe) as a shard", r"shard a\.safetensors is missing"),
    (rf"no file|a folder|{_SPECIAL}", _NO_WEIGHTS),
    (r"a weight_map of (\[\]|\{\})", r"index\.json lists no tensors"),
    (r"a weight_map of \{", r"is not the plain name of a \.safetensors file"),
    (r"a shard named '(5,000 characters|absent\.safetensors)'",
     r"shard .*\.safetensors is missing"),
    (r"a shard named", r"index\.json cannot be used: '.*' is not the plain name of a"),
    (r"a tensor that is in no shard", r"lists tensors that no shard has: b"),
    (r"a tensor in two shards", r"stores tensors in two shards: bert\.embeddings"),
    (r"a truncated shard", r"a\.safetensors is not a readable safetensors file"),
    (r"", _NO_INDEX),
)  # fmt: skip

_PICKLES: Rules = (
    (rf"no file|a folder|{_SPECIAL}", _NO_WEIGHTS),
    (r"a list|a number|one tensor|numbers (instead|as)", r"is not a dictionary of tensors"),
    (r"a sparse tensor|a tensor without data", r"is not a dictionary of tensors"),
    (r"complex numbers", r"query\.weight is stored as torch\.complex64, not as floating-point"),
    (r"a missing tensor", rf"{_NO_FIT}missing encoder\.layer\.0\.attention\.self\.query\.weight"),
    (r"", r"pytorch_model\.bin contains more than plain tensors, or is damaged"),
)

_INVALID = r"config\.json is not a valid bert configuration \(.*'{}'"
_MODEL_CONFIGS: Rules = (
    (rf"no file|a folder|{_SPECIAL}", r"model has no readable config\.json"),
    (r"an array|null|a number$", r"config\.json must hold one JSON object"),
    (r"larger than any config", r"config\.json has more than 67108864 bytes"),
    (r"no keys", r"config\.json has no model_type"),
    (r"vocab_size of 3", r"The tokenizer in .* has ids up to 30 but the model only 3 embeddings"),
    (r"vocab_size of 1048576",
     r"word_embeddings\.weight is stored as \(32, 32\) but must be \(1048"),
    (r"hidden_size of (0|-1|\d{7,})", r"The encoder cannot be built: hidden is -?\d+ but must be"),
    (r"(hidden_size|num_attention_heads) of 3", r"hidden size \d+ is not a multiple of the \d hea"),
    (r"num_hidden_layers of 3", rf"{_NO_FIT}missing encoder\.layer\.2"),
    (r"intermediate_size of (3|1048576)", r"intermediate\.dense\.bias are stored as \(64,\)"),
    (r"max_position_embeddings of (3|1048576)", r"position_embeddings\.weight is stored as \(64"),
    (r"type_vocab_size of 3", r"token_type_embeddings\.weight is stored as \(2, 32\) but must be"),
    (r"(vocab_size) of (0|-1|\d{7,})", r"cannot be built: vocab_size is -?\d+ but must be"),
    (r"num_hidden_layers of (0|-1|\d{7,})", r"cannot be built: layers is -?\d+ but must be"),
    (r"num_attention_heads of (0|-1|\d{7,})", r"cannot be built: heads is -?\d+ but must be"),
    (r"intermediate_size of (0|-1|\d{7,})", r"cannot be built: intermediate is -?\d+ but must be"),
    (r"max_position_embeddings of (0|-1|\d{7,})", r"cannot be built: max_positions is -?\d+ but"),
    (r"type_vocab_size of (-1|\d{7,})", r"cannot be built: type_vocab is -?\d+ but must be"),
    (r"hidden_act of \"", r"Unknown activation '(swiglu)?'"),
    (r"(layer_norm_eps|initializer_range) of (0\.0|-1\.0|NaN|Infinity)",
     r"(eps|range) is .* but mu"),
    (r"model_type of", r"config\.json describes a .* model; supported are"),
    (r"position_embedding_type of", r"not supported: .* position embeddings"),
    (r"(is_decoder|add_cross_attention|is_encoder_decoder) of",
     r"not supported: (is_|add_)\w+ \(on"),
    (r"pruned_heads of", r"not supported: pruned attention heads"),
    (r"num_labels of \d{7,}", r"not supported: \d+ labels \(at most 1000000\)"),
    (r"num_labels of", r"not supported: num_labels ('x'|1\.5) \(only a whole number\)"),
    (r"id2label of", r"not supported: id2label .* \(only an object of names by number\)"),
    (r"architectures of", r"not supported: architectures .* \(only a list of names\)"),
    *((rf"{name} of", _INVALID.format(name)) for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings", "type_vocab_size", "hidden_act",
        "layer_norm_eps", "initializer_range", "pad_token_id",
    )),
    (r"", rf"config\.json {_NO_JSON}"),
)  # fmt: skip

_TOKENIZERS: Rules = (
    (rf"tokenizer\.json: (a folder|{_SPECIAL})",
     r"has no tokenizer; put its tokenizer\.json there"),
    (r"no tokenizer at all", r"has no tokenizer; put its tokenizer\.json there"),
    (r"no padding token", r"it has no padding token \(set tokenizer\.pad_token"),
    (r"ids beyond the embedding table", r"has ids up to 126 but the model only 32 embeddings"),
    (r"", r"The tokenizer in .*model cannot be loaded \(.+\); check its files"),
)  # fmt: skip

_PEFT_CONFIG: Rules = (
    (rf"no file|a folder|{_SPECIAL}",
     r"is no PEFT adapter: it has no readable adapter_config\.json"),
    (r"an array|null", r"adapter_config\.json must hold one JSON object"),
    (r"r = ", r"cannot be used: rank of 'r' is .*, not a whole number above 0"),
    (r"lora_alpha = ", r"cannot be used: alpha of 'lora_alpha' is .*, not a number above 0"),
    (r"peft_type = |without peft_type", r"cannot be used: peft_type is .*, not 'LORA'"),
    (r"(rank|alpha)_pattern = (\[|'query')", r"(rank|alpha)_pattern is not an object"),
    (r"rank_pattern = \{'query", r"rank of 'query' is .*, not a whole number above 0"),
    (r"alpha_pattern = \{'query", r"alpha of 'query' is .*, not a number above 0"),
    (r"(rank|alpha)_pattern = \{'\(a", r"_pattern '\(a\)\\\\1' uses groupref"),
    (r"(rank|alpha)_pattern = \{'\('", r"_pattern '\(' is no regular expression \(missing \)"),
    (r"a rank that the factors",
     r"query has rank 2, but adapter_config\.json says 9223372036854775"),
    (r"without r", r"query has rank 2, but adapter_config\.json says 8"),
    (r"use_dora", r"use_dora is not supported"),
    (r"lora_bias", r"lora_bias is not supported"),
    (r"bias = 'all'", r"bias is 'all' \(only 'none'\)"),
    (r"layer_replication", r"layer_replication is not supported"),
    (r"", rf"adapter_config\.json {_NO_JSON}"),
)  # fmt: skip

_PEFT_FACTORS: Rules = (
    (r"no file", r"adapter_model\.safetensors cannot be read \(no such file\)"),
    (rf"a folder|{_SPECIAL}", r"adapter_model\.safetensors cannot be read \(not a file\)"),
    (r"no tensors", r"it adapts no layer"),
    (r"only one of two factors", r"query has only one of its two factors"),
    (r"factors of another matrix",
     r"the model has no bert\.encoder\.layer\.0\.attention\.self\.out"),
    (r"factors of a layer", r"the model has no bert\.encoder\.layer\.7"),
    (r"a name with a path", r"the model has no \.\./\.\./etc/passwd"),
    (r"an additional tensor", r"the model has no something\.weight"),
    (r"a factor with an integer dtype", r"lora_A\.weight is stored as I64, not as floating-point"),
    (r"a factor with (NaN|infinity)", r"numbers that are not finite: .*query\.lora_A\.weight"),
    (r"a factor with", r"query has factors \(.*\) and \(32, 2\) for a matrix 32 x 32"),
    (r"a pickle instead of safetensors", r"as a pickle \(adapter_model\.bin\), which can run code"),
    (r"", r"adapter_model\.safetensors is not a readable safetensors file"),
)  # fmt: skip

_UNWRITTEN = r"is not written as name or name\(option=value, \.\.\.\)"
_WHOLE_RANKS = r"gives ranks that are not whole numbers from 1 to 2147483647"
_RUN_CONFIGS: Rules = (
    (r"no file", r"config\.json cannot be read \(no such file\)"),
    (rf"a folder|{_SPECIAL}", r"config\.json cannot be read \(not a file\)"),
    (r"an array|null|a number$|a string", r"must map names of groups to options"),
    (r"an unknown group of 5,000", r"Unknown config field 'n{50}"),
    (r"an unknown group", r"Unknown config field 'dta'; did you mean 'data'"),
    (r"an unknown option", r"Unknown option in config group 'data': 'tsk'; did you mean 'task'"),
    (r"an option without its group", r"Unknown config field 'task'"),
    (r"larger than any config", r"config\.json has more than 1048576 bytes"),
    (r"(data|model|lora|federation|local|execution) of", r"Config field '\w+' must hold a group"),
    (r"(?P<field>[\w.]+) of an object", r"{field} cannot be \{{'a': 1\}}, it is"),
    (r"data\.task of \"(|7|file\(|\\u0000)\"", _UNWRITTEN),
    (r"data\.task of \"docstrings", r"Unknown option of task 'docstrings': 'x'"),
    (r"data\.task of \"file\"", r"file\(\.\.\.\) needs files"),
    (r"data\.task of", r"Unknown task '"),
    (r"data\.(train_examples|test_examples) of 10{6,}|data\.test_examples of 25",
     r"has 24 (training|test) examples, but \d+ are asked for"),
    (r"data\.validation_examples of (24|1\d+)", r"but 1 and \d+ validation are asked for"),
    (r"model\.model of \"/\"", r"/ has no readable config\.json"),
    (r"model\.model of \"no/such\"", r"Model 'no/such' is not in the local cache"),
    (r"model\.model of \"(\.\.|a/b|~)", r"Model folder '.*' does not exist"),
    (r"model\.model of", r"Unknown model '"),
    (r"model\.layers of (3|10+)$", r"layers is \d+ but must be between 1 and the 2"),
    (r"lora\.targets of \"(\(\(|\*)\"", r"Targets '.*' hold an invalid regular expression"),
    (r"lora\.targets of (\"|1002)", r"Targets '\w+' match no layer"),
    (r"lora\.lora_layers of \[\]", r"leaves no layer to adapt"),
    (r"lora\.lora_layers of \[-?\d+\]", r"Layers \[-?\d+\] do not exist in .*, which has layers 0"),
    (r"federation\.(method|partition|ranks) of \"\"", _UNWRITTEN),
    (r"federation\.method of \"(hlora\(\"|hlora\(7|__)", _UNWRITTEN),
    (r"federation\.method of \"nothing", r"Unknown method 'nothing'"),
    (r"federation\.method of \"hlora\(x", r"Unknown option of method 'hlora': 'x'"),
    (r"federation\.clients of (25|1000000)$",
     r"clients with at least 2 examples each need \d+ exa"),
    (r"federation\.cohort of (5|10+)$", r"a cohort of \d+ cannot be drawn from 4 clients"),
    (r"federation\.min_examples of (25|10+)$", r"4 clients with at least \d+ examples each need"),
    (r"federation\.partition of \"dirichlet\(alpha=0", r"alpha must be a number above 0"),
    (r"federation\.partition of \"dirichlet", r"partition 'dirichlet': alpha is float, got 'x'"),
    (r"federation\.partition of \"natural", r"'natural' needs a group column"),
    (r"federation\.partition of", _UNWRITTEN),
    (r"federation\.ranks of \"fixed\"", r"'fixed' needs the option rank"),
    (r"federation\.ranks of \"fixed\(rank=33", r"LoRA rank 33 exceeds what a layer can have"),
    (r"federation\.ranks of \"fixed\(rank=1\.5", r"'fixed': rank is int, got 1\.5"),
    (r"federation\.ranks of \"table\(ranks=\[1\]", r"'table' lists 1 ranks for 4 clients"),
    (r"federation\.ranks of \"table\(ranks=\[1, 2, 3",
     r"'table': ranks is .*, got \[1, 2, 3, 'x'\]"),
    (r"federation\.ranks of \"tiers\(ranks=\[(\]|1, 2\], shares=\[1\]|1\])",
     r"needs as many non-negative shares as ranks"),
    (r"federation\.ranks of \"tiers\(ranks=\[1, 2\]", r"a finite sum above 0, got .*\[inf, 1\]"),
    (r"federation\.ranks of \"random\(low=4", r"needs low <= high, .* got 4 and 2"),
    (r"federation\.ranks of \"random\(low=1", r"both from 1 to 2147483647, got 1 and 10+"),
    (r"federation\.ranks of \"budget\(bytes=\[1\]", r"1 bytes of message hold 0 components"),
    (r"federation\.ranks of \"budget", r"LoRA rank 976562 exceeds what a layer can have"),
    (r"federation\.ranks of \"by_quality", r"'by_quality' needs the partition 'quality"),
    (r"federation\.ranks of", _WHOLE_RANKS),
    (r"federation\.updates of \[\"nothing", r"Unknown update 'nothing'"),
    (r"federation\.updates of \[\"clip\"", r"update 'clip' needs the option norm"),
    (r"federation\.updates of \[\"clip\(", r"'clip' needs norm above 0 and finite, got 0\.0"),
    (r"federation\.updates of \[\"int8", r"\['int8', 'clip\(norm=1\.0\)'\] are out of order"),
    (r"federation\.faults of \[\"nothing", r"Unknown fault 'nothing'"),
    (r"federation\.faults of \[\"dropout\"", r"fault 'dropout' needs the option probability"),
    (r"federation\.faults of \[\"dropout\(", r"'dropout' needs probability from 0 to 1, got 2"),
    (r"federation\.server_optimizer of \"nothing", r"Unknown server optimizer 'nothing'"),
    (r"federation\.server_optimizer of \"sgd", r"'sgd' needs momentum in \[0, 1\), got 2\.0"),
    (r"federation\.server_optimizer of",
     r"'adam' needs learning_rate above 0 and finite, got 0\.0"),
    (r"local\.optimizer of \"nothing", r"Unknown optimizer 'nothing'"),
    (r"local\.optimizer of \"adamw\(x", r"Unknown option of optimizer 'adamw': 'x'"),
    (r"local\.optimizer of \"adamw\(b1", r"Optimizer \"adamw\(b1='x'\)\": .* 'str'"),
    (r"local\.optimizer of \"sgd", r"Optimizer 'sgd\(momentum=\[1\]\)': .* 'list'"),
    (r"local\.optimizer of \"lbfgs", r"Optimizer 'lbfgs': .*'value', 'grad', and 'value_fn'"),
    (r"local\.optimizer of", _UNWRITTEN),
    (r"local\.schedule of \"nothing", r"Unknown schedule 'nothing'"),
    (r"local\.schedule of \"linear\(x", r"Unknown option of schedule 'linear': 'x'"),
    (r"local\.schedule of \"warmup", r"warms up for 9 of 1 rounds"),
    (r"local\.schedule of", r"schedule 'linear': end is float, got 'x'"),
    # A value out of its range, or of another type: the option and the value are named.
    (r"\w+\.(?P<field>dropout|lora_dropout) of (-0\.1|1\.0|2|NaN)$",
     r"{field} must be in \[0, 1\), got "),
    (r"(\w+\.)?(?P<field>\w+) of (-?\d+(\.\d+)?(e\+\d+)?|NaN|Infinity)$",
     r"{field} (must be (at least|at most|above) \S+, got|cannot be .*, it is)"),
    (r"(?P<field>(\w+\.)?\w+) of (\"|\[|\{|null|true)", r"{field} cannot be .*, it is"),
    (r"", rf"config\.json {_NO_JSON}"),
)  # fmt: skip

EXPECTED: Mapping[str, Rules] = {
    "data files": _TABLES,
    "safetensors": _SAFETENSORS,
    "index of shards": _INDEX,
    "pickled weights": _PICKLES,
    "model configs": _MODEL_CONFIGS,
    "tokenizers": _TOKENIZERS,
    "PEFT config": _PEFT_CONFIG,
    "PEFT factors": _PEFT_FACTORS,
    "run configs": _RUN_CONFIGS,
}
"""Rules by family: a pattern of names, and one of sentences, in which ``{field}`` is the part of
the name that is called so."""


def says(family: str, name: str) -> str:
    """Return the pattern that the sentence about a case has to match.

    >>> says("PEFT factors", "no tensors")
    'it adapts no layer'

    Args:
      family: of the case.
      name: of the case.

    Raises:
      LookupError: no rule is for this case.
    """
    rules = EXPECTED[family]
    if family == "data files" and name.startswith("conversations: "):
        rules, name = _CONVERSATIONS, name.removeprefix("conversations: ")
    for of_name, of_sentence in rules:
        if found := re.match(of_name, name):
            parts = {key: re.escape(value) for key, value in found.groupdict().items()}
            return of_sentence.format(**parts) if parts else of_sentence
    raise LookupError(f"{family}: {name}")
