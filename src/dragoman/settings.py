"""Every setting of dragoman: its name, type, default, unit and meaning.

The string under a field is its help on the command line. Each setting is defined here only: other
files take a section, or a few of its values.
"""

import codecs
import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _split_commas(value: object) -> object:
    """Return "a,b" as a list, for the command line; "" as an empty one, a number as a list of one."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


def _split_tokens(value: object) -> object:
    """Return "a, b" as "a" and " b": a space may be a part of a token; and "," as a comma.

    In double quotes, as in JSON, a token may have a comma: '",", " the"'.
    """
    if isinstance(value, str):
        try:
            quoted = json.loads(f"[{value}]")
        except (ValueError, RecursionError):
            quoted = []
        if quoted and all(isinstance(token, str) for token in quoted):
            return quoted
        return [","] if value == "," else [token for token in value.split(",") if token]
    return _split_commas(value)


def _name_answer(value: object) -> object:
    """Return true and false as "yes" and "no": YAML reads those words as booleans."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _check_separator(separator: str) -> str:
    """Return the character, or "auto"; tab may be typed as a word or as \\t."""
    separator = {"tab": "\t", "\\t": "\t"}.get(separator, separator)
    if separator != "auto" and (len(separator) != 1 or separator in '"\r\n'):
        raise ValueError("expected one character, tab, or auto")
    return separator


def _check_encoding(encoding: str) -> str:
    """Return the name of an encoding that Python knows, or "auto"."""
    if encoding == "auto":
        return encoding
    try:
        "".encode(encoding)
    except LookupError as error:
        raise ValueError(
            "expected auto, or an encoding that Python knows, such as utf-8, utf-16, cp1252"
        ) from error
    return codecs.lookup(encoding).name


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=1_000_000_000)]
Ratio = Annotated[float, Field(ge=0.0, le=1000.0)]
Column = str
Weight = Annotated[float, Field(gt=0.0, le=1000.0)]
Weights = Annotated[tuple[Weight, ...], BeforeValidator(_split_commas)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
Tokens = Annotated[tuple[str, ...], BeforeValidator(_split_tokens)]
TokenizerKind = Literal["characters", "symbols", "bpe", "unigram", "regex"]
UnicodeForm = Literal["none", "nfc", "nfd"]
RowPolicy = Literal["error", "skip"]
Separator = Annotated[str, AfterValidator(_check_separator)]
FeaturesSeparator = Annotated[str, AfterValidator(lambda text: "" if text == "none" else text)]
Encoding = Annotated[str, AfterValidator(_check_encoding)]
Monitor = Literal[
    "auto", "token_error_rate", "character_error_rate", "exact_match", "chrf", "bleu", "loss"
]
LoggerName = Literal["auto", "none", "tensorboard", "wandb", "mlflow", "comet", "litlogger"]


class Section(BaseModel):
    """A group of settings: frozen, without unknown names."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # a column may be typed as a position
    )


class DataSettings(Section):
    """Where the pairs are, the layout of their files, and what happens to invalid rows."""

    format: Literal["auto", "tsv", "csv", "jsonl", "parquet", "arrow", "parallel"] = "auto"
    """Layout of the files; auto: by the name (.tsv .csv .jsonl .parquet .arrow, also .gz or .zst); parallel: two text files, line by line."""
    header: Annotated[Literal["auto", "yes", "no"], BeforeValidator(_name_answer)] = "auto"
    """Whether the first line of a TSV or CSV file names the columns; auto: if it has usual names (source, target, input, word, english ...) or those of data.source, data.target and data.features."""
    separator: Separator = "auto"
    """Character between two columns, such as ";", "," or tab; auto: tab for TSV; for CSV the comma, or a semicolon or tab found by itself. Quotes are syntax, except in a TSV file whose quotes do not look so."""
    encoding: Encoding = "auto"
    """Encoding of text files, such as utf-8, utf-16, cp1252, shift_jis; auto: UTF-8, or UTF-16 by its byte order mark."""
    source: Column = "auto"
    """Column of the source: a name, or a position from 1; auto: the column named source (or input, word ...), else the first. Of nested JSON objects a path: translation.en."""
    target: Column = "auto"
    """Column of the target: a name, or a position from 1; auto: the column named target (or output, answer ...), else the second."""
    columns: Texts = ()
    """Names of the source and the target column in the training files, set by fit: a later file that has them is read by them, in any order."""
    features: Texts = ()
    """Columns whose values become one symbol each before the source (tags, languages): names, or positions from 1."""
    features_separator: FeaturesSeparator = ""
    """Separator in the values of data.features, such as ";" in "V;PST;3;SG": each part is a symbol. A ; or | is found by itself where most values share parts; none: a value is one symbol."""
    records: Literal["auto", "json", "text"] = "auto"
    """Form of targets that are JSON objects: json writes them compactly with the fields in the order of data.record_fields, and outputs are such objects again; text leaves them as written. auto: json if over nine in ten of the targets are JSON objects; the others are then invalid rows."""
    record_fields: Texts = ()
    """Order of the fields of data.records json, also of nested ones; none: as in the training pairs."""
    leading_tags: bool = False
    """Read <tags> at the start of a source, such as "<V> <PST> walk", as features: one symbol each."""
    train: Texts = ()
    """Files of training pairs, where the command has no PAIRS: see there."""
    weights: Weights = ()
    """How often each training file (or folder, or pattern) is drawn in an epoch, in the order of PAIRS: 2: each pair twice; 0.5: half of the pairs, and the others in the next epoch. Held-out pairs, the tokenizer and the preset are as without. none: each pair once."""
    unlabelled: Texts = ()
    """Files of sources without targets, as predict reads them; training.teacher gives them targets."""
    train_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Fraction of the training sources to train on, by a hash of the source: a smaller fraction is a part of a larger one. Held-out sources stay."""
    valid: Texts = ()
    """File of validation pairs (two for parallel text); none: a fraction of the training pairs."""
    valid_fraction: Fraction = 0.05
    """Fraction of the sources held out for validation, by a hash of the source; used without data.valid."""
    test: Texts = ()
    """File of test pairs (two for parallel text), scored once, after training."""
    test_fraction: Fraction = 0.0
    """Fraction of the sources held out for the test, by a hash of the source; used without data.test."""
    broken_rows: Literal["error", "skip", "keep_empty"] = "error"
    """Invalid rows (missing columns, not UTF-8, an empty side, NUL): stop with an error, or skip and count them; keep_empty: as error, but empty targets are pairs."""
    long_rows: RowPolicy = "error"
    """Rows longer than data.max_characters or data.max_tokens: stop with an error, or skip and count them."""
    max_characters: Positive = 5000
    """Maximum length of a source or target, in characters."""
    max_tokens: Positive = 1024
    """Maximum length of a source or target, in tokens."""
    cache: str = "auto"
    """Folder of prepared data (tokens and ids), reused by the next run on the same files; entries unused for 30 days, and the oldest beyond 10 GiB, are removed. auto: dragoman in XDG_CACHE_HOME or ~/.cache; none: no cache. Not stored in a model folder."""
    processes: Annotated[int, Field(ge=0)] = 0
    """Processes that read pairs and make ids, at most; the result is the same with any number. 0: one for each core. Not stored in a model folder."""


class SideSettings(Section):
    """How the text of one side is split into tokens."""

    kind: TokenizerKind = "bpe"
    """characters; symbols (split at separator: phonemes, words); bpe (on bytes, lossless); unigram; regex (each match of pattern is a token)."""
    vocab_size: Annotated[int, Field(ge=8, le=1_000_000)] = 8000
    """Maximum vocabulary size, for bpe and unigram."""
    separator: str = " "
    """Separator between two tokens of kind symbols."""
    pattern: str = ""
    """Regular expression of kind regex."""
    unicode_form: UnicodeForm = "none"
    """Unicode normalisation inside the model; nfd splits accents from letters, and Hangul into jamo; outputs are recomposed."""


class TokenizerSettings(Section):
    """The tokenizers of both sides."""

    source: SideSettings = SideSettings()
    target: SideSettings = SideSettings()
    shared: bool = False
    """One vocabulary for both sides; their settings must then be equal."""
    pointers: bool = False
    """Number the words of a source, and learn which numbers the values of a record have, instead of their letters; needs one vocabulary. On by itself where most values stand in their source."""
    training_rows: Positive = 1_000_000
    """Maximum number of rows to train the tokenizer on, evenly spread."""


class ModelSettings(Section):
    """The sizes of the Transformer."""

    d_model: Size = 256
    """Width of the model."""
    nhead: Size = 4
    """Number of attention heads; d_model must be a multiple of it."""
    num_encoder_layers: Size = 3
    """Number of encoder layers."""
    num_decoder_layers: Size = 3
    """Number of decoder layers."""
    dim_feedforward: Size = 1024
    """Width of the feed-forward layers."""
    dropout: Annotated[float, Field(ge=0.0, le=0.99)] = 0.1
    """Dropout probability in training."""
    activation: Literal["relu", "gelu"] = "relu"
    """Activation function of the feed-forward layers."""
    norm_first: bool = True
    """Layer norm before each block (pre-norm, trains more stably) or after it (post-norm)."""
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    """Position encoding; learned ends at max_positions; rotary rotates queries and keys of self-attention by the position."""
    max_positions: Size = 1024
    """Number of learned positions."""
    tie_embeddings: bool = False
    """One matrix for the target embedding and the output layer; with a shared vocabulary, also for the source embedding."""


class OptimizationSettings(Section):
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the layers, AdamW for embeddings, norms and biases, with the same learning rate. It learns more from each step, but steps take longer, most of all without bf16: it pays where the time is short for the number of pairs."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["inverse_sqrt", "cosine", "linear", "constant"] = "linear"
    """Learning-rate schedule after warm-up; cosine and linear reach zero at training.max_steps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    """Steps in which the learning rate rises from zero to its peak."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Weight decay of both optimizers; applied to matrices only."""
    beta1: Fraction = 0.9
    """AdamW beta1."""
    beta2: Fraction = 0.98
    """AdamW beta2."""
    label_smoothing: Fraction = 0.1
    """Label smoothing: probability spread evenly over the vocabulary."""
    distillation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Weight of the probabilities of training.teacher for the tokens of each target, beside the target itself; 0: only the teacher's outputs are learned. The model then has the teacher's tokenizers, and each step also computes the teacher, all models of an ensemble."""
    guided_attention: Annotated[float, Field(ge=0.0)] = 1.0
    """Of records that point (tokenizer.pointers): weight of the loss that tells one head of the cross-attention where the next word stands; 0: none."""
    subword_dropout: Fraction = 0.0
    """Probability that a subword of kind bpe is split into its two parts, and these again (as in BPE-dropout), in training batches, which become longer than training.batch_tokens."""
    hallucination: Fraction = 0.0
    """Probability that letters which source and target of a training pair share are replaced by random ones (hallucinated stems); for the inflection of few words, with one vocabulary of characters."""
    average_decay: Fraction = 0.999
    """Decay of the exponential moving average of the weights, which is validated and saved; 0: no average."""
    clip_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Clip gradients to this norm; 0: no clipping."""


class TrainingSettings(Section):
    """How long, in what batches, and on what device to train."""

    start_from: str = ""
    """Model folder whose weights the training starts from. Its model sizes, tokens, columns and held-out fractions are used; new symbols and features are added to its vocabulary. none: random weights."""
    teacher: str = ""
    """Model folder, best one of fit --seeds, whose outputs for the training sources and for data.unlabelled are trained on beside the pairs. Without data.valid its held-out fractions are used."""
    max_steps: Positive = 40_000
    """Maximum number of optimizer steps."""
    max_minutes: Annotated[float, Field(ge=0.0)] = 0.0
    """Time limit of the run, in minutes (0: none). Without max_steps, fit measures its speed and chooses the number of steps that fills the time, so that the learning rate ends there. Training that is slower stops at the limit, and is then scored. A resumed run keeps those steps, and may again take so long."""
    batch_tokens: Positive = 2048
    """Maximum tokens per batch, on its longer side, with padding."""
    accumulate: Size = 1
    """Batches per step (gradient accumulation)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Seed of the weights, the dropout and the order of the batches."""
    valid_every: Positive = 500
    """Validate every N steps."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Checkpoint every N steps (work lost in a crash); 0: same as valid_every."""
    valid_rows: Positive = 1000
    """Decode about this many rows at each validation, of all lengths; the loss is always over all rows."""
    patience: Annotated[int, Field(ge=0)] = 10
    """Stop after this many validations without a better score; 0: never, as where max_minutes plans the steps."""
    monitor: Monitor = "auto"
    """Validation score for the best checkpoint and for early stopping. auto: chrf for running text, token_error_rate for symbols and short strings, character_error_rate for short strings in subwords."""
    loggers: Annotated[tuple[LoggerName, ...], BeforeValidator(_split_commas)] = ("auto",)
    """Lightning loggers for curves and samples, in addition to a CSV file; several with commas between; auto: TensorBoard if installed."""
    implementation: Literal["fused", "reference"] = "fused"
    """Code that computes the model in training: fused is faster; reference is torch's own modules. Both compute the same function."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """Mixed precision (Lightning's names); auto: bf16 where the hardware supports it."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; auto: a GPU if there is one."""
    devices: Positive | Literal["auto"] = 1
    """Processes on each machine that share the batches of one training: one for each GPU or, on a CPU, with its share of the cores. auto: all GPUs. Under torchrun and srun: as many as those have started."""
    num_nodes: Positive = 1
    """Machines that train together; torchrun or srun starts the same command on each."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How devices work together. ddp: each computes a part of every batch, and their gradients are summed; auto: ddp, if there are several."""


class DecodingSettings(Section):
    """How outputs are searched, their length, and constraints on them."""

    method: Literal["beam", "diverse", "sampling"] = "beam"
    """Beam search, diverse beam search (groups that avoid each other's tokens), or random sampling."""
    beam_size: Positive = 1
    """Hypotheses kept at each step of beam search; 1: greedy search. If it is not set, fit takes 1, or 5 where that is better on validation rows."""
    num_hypotheses: Positive = 1
    """Outputs per source, best first; more than one need --jsonl or --output *.parquet."""
    length_norm: Literal["average", "wu"] = "average"
    """Length normalisation: score / length^length_penalty (average), or score / ((5 + length) / 6)^length_penalty (wu: Wu et al. 2016)."""
    length_penalty: Annotated[float, Field(ge=0.0, le=50.0)] = 1.0
    """Exponent of the length (end token included) in the length normalisation; 0: none. If it is not set, fit may choose one with a beam_size."""
    stop: Literal["full", "exact"] = "full"
    """Stop beam search when beam_size hypotheses have ended (full), or when no open hypothesis can still be among the best (exact: slower)."""
    max_length_ratio: Ratio = 2.0
    """Maximum output length, in tokens: max_length_ratio * source tokens (rounded up to a multiple of 16) + max_length_extra, but never more than max_length."""
    max_length_extra: Size = 50
    """Constant part of the maximum output length; fit raises it if training pairs need more."""
    max_length: Annotated[int, Field(ge=0)] = 0
    """Maximum output length of any source; 0: none. If none of the three is set, fit sets it to twice the longest training target, plus max_length_extra. For a trained model, setting one of the others alone removes it."""
    min_length_ratio: Ratio = 0.0
    """Minimum output length: min_length_ratio * source tokens + min_length, in tokens."""
    min_length: Annotated[int, Field(ge=0)] = 0
    """Constant part of the minimum output length."""
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 0
    """Never repeat an n-gram of this many tokens in an output; 0: no limit."""
    forbidden_tokens: Tokens = ()
    """Target tokens that are never emitted, spaces included; in double quotes where one has a comma: '",", " the"'."""
    diverse_groups: Positive = 2
    """Groups of diverse beam search; beam_size must be a multiple of it."""
    diverse_strength: Annotated[float, Field(ge=0.0)] = 0.5
    """Penalty on a token, in nats, for each earlier group that chose it at the same step."""
    num_samples: Positive = 1
    """Outputs to sample per source; the best num_hypotheses are kept."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Sampling temperature: below 1 favours likely tokens, above 1 flattens the distribution."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample only from the k most likely tokens; 0: from all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample only from the most likely tokens that together have this probability (nucleus sampling)."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of the sampling; an output depends only on the seed and its source."""
    minimum_risk: Literal["none", "edit", "chrf"] = "none"
    """Minimum Bayes risk: choose the candidate closest, by edit distance or chrF, to all candidates (of the beam, or the samples)."""
    regex: str = ""
    """Regular expression that the whole output matches (syntax of Rust's regex crate). Constraints need the PyTorch engine."""
    json_schema: str = ""
    """JSON schema that each output conforms to: a file, or the schema itself if it begins with {."""
    choices: str = ""
    """File of the only allowed outputs, one per line."""
    grammar: str = ""
    """File of a grammar in the Lark format that each output conforms to."""
    token_scores: bool = False
    """Return the tokens of each output with their log-probabilities (--jsonl, or --output *.parquet)."""
    alignment: bool = False
    """Return the attention of each output token over the source tokens (--jsonl, or --output *.parquet)."""
    batch_tokens: Positive = 8192
    """Maximum source tokens per batch, with padding; each hypothesis of a beam counts."""
    truncation_mark: str = " [truncated]"
    """Appended to an output that was truncated at the maximum length."""
    records: Literal["auto", "none", "json", "lines", "|", ";"] = "auto"
    """Format of outputs that are records: JSON objects, or `field: value` on lines or between | or ;. none: they are text. auto: fit finds it in the training targets."""
    require_grounding: Literal["none", "exact", "near"] = "none"
    """Leave out each value of a record that does not stand in the source: in the same characters (exact), or nearly so (near). Values that the model rewrites, such as dates, do not."""
    memory: Literal["none", "auto"] = "auto"
    """Answer a source of the training pairs by its target, if it had only one. auto: where fit found, on sources that occur again, that this is better than the model, and kept a table of them; not with constraints, forbidden_tokens, no_repeat_ngram, samples, several hypotheses, token_scores, alignment or a prefix, nor where the target is longer or shorter than outputs may be."""

    @property
    def constraint_files(self) -> dict[str, str]:
        """The files of constraints that are set, by the name of the setting."""
        named = {name: getattr(self, name) for name in ("choices", "json_schema", "grammar")}
        schema = self.json_schema.strip()
        if schema.startswith("{") or schema in ("", "true", "false"):
            del named["json_schema"]
        return {name: file for name, file in named.items() if file}

    def to_greedy(self) -> "DecodingSettings":
        """Return greedy search with the same maximum output length."""
        names = ("max_length_ratio", "max_length_extra", "max_length")
        return DecodingSettings(**{name: getattr(self, name) for name in names})

    @property
    def num_candidates(self) -> int:
        """Number of hypotheses that a search produces for each source."""
        return self.num_samples if self.method == "sampling" else self.beam_size

    @property
    def num_searched(self) -> int:
        """Number of hypotheses that a search returns; all candidates with minimum_risk."""
        return self.num_hypotheses if self.minimum_risk == "none" else self.num_candidates


class EvaluationSettings(Section):
    """How outputs are compared with their references."""

    task: Literal["auto", "text", "phones", "records"] = "auto"
    """Kind of the targets: text (WER, CER, BLEU, chrF, TER); phones (PER over symbols; WER is the fraction of wrong rows); records (JSON objects, or "field: value" lines; also precision, recall and F1 of the fields). auto: by the references and the tokenizer."""
    repeated_sources: Literal["auto", "references", "rows"] = "auto"
    """Pairs with the same source: references of it, any of which is right; or rows, each scored by itself, as in running text. auto: rows, if more of them repeat a whole pair than give another target."""
    bleu_tokenizer: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    """Tokenizer of sacrebleu for BLEU; char or zh for languages without spaces."""
    confidence_level: Annotated[float, Field(gt=0.0, le=0.9999)] = 0.95
    """Confidence level of the intervals."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Number of bootstrap resamples for an interval."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of the bootstrap."""
    report: Literal["html", "none"] = "html"
    """Whether fit writes report.html into the model folder; it opens offline."""


class Settings(Section):
    """All settings, by section."""

    version: str = ""
    """Version of dragoman that wrote these settings; set by dragoman."""
    preset: Literal["auto", "fast", "tiny", "small", "medium", "large"] = "auto"
    """Defaults for all settings that are not set; auto: by the number and length of the pairs; fast: the same with 6 encoder layers and 1 decoder layer, for training.teacher."""
    quality: Literal["quick", "normal", "best"] = "normal"
    """Steps of the preset: quick an eighth, best four times as many as normal."""
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    optimization: OptimizationSettings = OptimizationSettings()
    training: TrainingSettings = TrainingSettings()
    decoding: DecodingSettings = DecodingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @property
    def token_teacher(self) -> str:
        """The teacher whose probabilities are learned, too; "": none."""
        return self.training.teacher if self.optimization.distillation else ""
