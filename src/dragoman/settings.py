"""Every setting of dragoman: its name, type, default, unit and meaning.

The string under a field is its help on the command line. A setting stands in one place only: the
parts of the package take a section (or a few of its values), never a copy of it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _split_commas(value: object) -> object:
    """Return "a,b" as the list that it means (so lists are typed on the command line), "" as none.

    A value that stands alone, as a column by its position, is a list of one.
    """
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


def _name_answer(value: object) -> object:
    """Return true and false, which is what YAML makes of yes and no, as "yes" and "no"."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Column = str
Texts = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
TokenizerKind = Literal["characters", "symbols", "bpe", "unigram", "regex"]
UnicodeForm = Literal["none", "nfc", "nfd"]
RowPolicy = Literal["error", "skip"]
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
    """Where the pairs are, how a file of them is laid out, and what happens to a faulty row."""

    format: Literal["auto", "tsv", "csv", "jsonl", "parquet", "parallel"] = "auto"
    """Layout of the files; auto goes by the name (.tsv .csv .jsonl .parquet, also with .gz or .zst); parallel is two text files, line by line."""
    header: Annotated[Literal["auto", "yes", "no"], BeforeValidator(_name_answer)] = "auto"
    """Whether the first line of a TSV or CSV file names the columns; auto: yes for CSV, no for TSV."""
    source: Column = "auto"
    """Column of the source: a name, or a position from 1; auto: the one named source, else the first."""
    target: Column = "auto"
    """Column of the target: a name, or a position from 1; auto: the one named target, else the second."""
    features: Texts = ()
    """Columns whose values become one symbol each before the source (tags, languages); names or positions from 1."""
    leading_tags: bool = False
    """Read <tags> at the start of a source, as in "<V> <PST> walk", as features: one symbol each."""
    valid: Texts = ()
    """File of validation pairs (two for parallel text); none: a part of the training pairs."""
    valid_fraction: Fraction = 0.05
    """Part of the sources held out for validation, by a hash of the source; used without data.valid."""
    test: Texts = ()
    """File of test pairs (two for parallel text), scored once, after training."""
    test_fraction: Fraction = 0.0
    """Part of the sources held out for the test, by a hash of the source; used without data.test."""
    broken_rows: RowPolicy = "error"
    """What to do when rows are broken (columns, UTF-8, empty side, NUL): stop, or skip and count them."""
    long_rows: RowPolicy = "error"
    """What to do when rows are over data.max_characters or data.max_tokens: stop, or skip and count them."""
    max_characters: Positive = 5000
    """Longest source or target, in characters."""
    max_tokens: Positive = 1024
    """Longest source or target, in tokens."""
    cache: str = "auto"
    """Folder where tokens and ids are kept for the next run on the same files (a month after their last use, 10 GiB at most); auto: dragoman in XDG_CACHE_HOME or ~/.cache; none: nothing is kept. A fact of the machine: never written into a model folder."""


class SideSettings(Section):
    """How the text of one side is cut into tokens."""

    kind: TokenizerKind = "bpe"
    """characters; symbols (cut at separator: phonemes, words); bpe (bytes, lossless); unigram; regex (every match of pattern is a token)."""
    vocab_size: Annotated[int, Field(ge=8, le=1_000_000)] = 8000
    """Largest number of tokens, for bpe and unigram."""
    separator: str = " "
    """What stands between two tokens of kind symbols."""
    pattern: str = ""
    """Regular expression of kind regex."""
    unicode_form: UnicodeForm = "none"
    """Unicode form of the text inside the model; nfd takes letters and accents apart, and Hangul into jamo; output is recomposed."""


class TokenizerSettings(Section):
    """The tokens of both sides."""

    source: SideSettings = SideSettings()
    target: SideSettings = SideSettings()
    shared: bool = False
    """One vocabulary for both sides, which must then have the same settings."""
    training_rows: Positive = 1_000_000
    """Largest number of training rows that the tokenizer is trained on."""


class ModelSettings(Section):
    """The sizes of the Transformer."""

    d_model: Positive = 256
    """Width of the model."""
    nhead: Positive = 4
    """Attention heads; d_model must be a multiple of it."""
    num_encoder_layers: Positive = 3
    """Layers of the encoder."""
    num_decoder_layers: Positive = 3
    """Layers of the decoder."""
    dim_feedforward: Positive = 1024
    """Width of the feed-forward layers."""
    dropout: Fraction = 0.1
    """Part of the activations that is dropped in training."""
    activation: Literal["relu", "gelu"] = "relu"
    """Function between the feed-forward layers."""
    norm_first: bool = True
    """Layer norm before each block (pre-norm: trains without care) or after it (post-norm)."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """Sinusoidal positions have no longest length; learned ones end at max_positions."""
    max_positions: Positive = 1024
    """Number of learned positions."""
    tie_embeddings: bool = False
    """One matrix for the target's embedding and the output; with a shared vocabulary, for the source's embedding too."""


class OptimizationSettings(Section):
    """How the weights are updated."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["inverse_sqrt", "cosine", "linear", "constant"] = "linear"
    """Course of the learning rate after the warm-up; cosine and linear reach zero at training.max_steps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    """Updates over which the learning rate rises from zero to its peak."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decay of the matrices, a part of the learning rate; vectors do not decay."""
    beta1: Fraction = 0.9
    """How slowly AdamW's mean of the gradients forgets."""
    beta2: Fraction = 0.98
    """How slowly AdamW's mean of their squares forgets."""
    label_smoothing: Fraction = 0.1
    """Weight that is spread evenly over all tokens of the vocabulary."""
    average_decay: Fraction = 0.999
    """Part of the running average of the weights that stays at each update; the average is what is validated and kept. 0: no average."""
    clip_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest norm of the gradient; 0 leaves it as it is."""


class TrainingSettings(Section):
    """How long, in what batches, and on what."""

    max_steps: Positive = 40_000
    """Most updates of the weights."""
    max_minutes: Annotated[float, Field(ge=0.0)] = 0.0
    """Wall-clock limit of the training, in minutes, counted anew where it goes on after an interruption; 0: none. The schedule still goes by max_steps."""
    batch_tokens: Positive = 2048
    """Largest batch, in tokens of its longer side, padding counted."""
    accumulate: Positive = 1
    """Batches an update."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of the weights, the dropout and the order of the batches."""
    valid_every: Positive = 500
    """Updates between two validations."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Updates between two checkpoints, which is what a death may cost; 0: as valid_every."""
    valid_rows: Positive = 1000
    """About how many validation rows are decoded at each validation, spread over all lengths; the loss is over all."""
    patience: Annotated[int, Field(ge=0)] = 10
    """Validations without a better score before the training stops; 0: never."""
    monitor: Monitor = "auto"
    """Validation score that chooses the best checkpoint and stops the training. auto: chrf where targets are running text, token_error_rate where they are symbols or short strings, character_error_rate where those are cut into pieces."""
    loggers: Annotated[tuple[LoggerName, ...], BeforeValidator(_split_commas)] = ("auto",)
    """Where curves and samples go, beside the CSV file that is always written: Lightning's loggers auto, none, tensorboard, wandb, mlflow, comet, litlogger; auto: TensorBoard where it is installed."""
    implementation: Literal["fused", "reference"] = "fused"
    """Code that computes the model in training: fused (fast) or torch's own modules (reference); the same function."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """Number format of the products; auto: bf16 where the processor or the GPU has it."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model is trained; auto: on a GPU if there is one."""


class DecodingSettings(Section):
    """How a prediction is made, how long it may be, and what it may say."""

    method: Literal["beam", "diverse", "sampling"] = "beam"
    """Beam search; diverse beam search (groups that avoid each other's tokens); or sampling by chance."""
    beam_size: Positive = 1
    """Hypotheses that beam search keeps at each step; 1 is greedy search."""
    num_hypotheses: Positive = 1
    """Outputs of each source, the best first; more than one are written with --jsonl only."""
    length_norm: Literal["average", "wu"] = "average"
    """Hypotheses are compared by score / length^length_penalty (average), or by score / ((5 + length) / 6)^length_penalty (wu: Wu et al. 2016)."""
    length_penalty: Annotated[float, Field(ge=0.0)] = 1.0
    """Exponent of the length, its end included, in the comparison of hypotheses; 0: by their score alone."""
    stop: Literal["full", "exact"] = "full"
    """Beam search ends when beam_size hypotheses have ended (full), or when no hypothesis that goes on could still be among the best (exact: slower)."""
    max_length_ratio: Annotated[float, Field(ge=0.0)] = 2.0
    """Longest output: max_length_ratio * tokens of the source (rounded up to a multiple of 16) + max_length_extra, in tokens."""
    max_length_extra: Annotated[int, Field(ge=1)] = 50
    """Tokens that an output may have beyond the ratio; raised by itself where the training pairs need more."""
    min_length_ratio: Annotated[float, Field(ge=0.0)] = 0.0
    """Shortest output: min_length_ratio * tokens of the source + min_length, in tokens."""
    min_length: Annotated[int, Field(ge=0)] = 0
    """Fewest tokens of an output, whatever its source."""
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 0
    """No sequence of so many tokens comes twice in an output; 0: any may."""
    forbidden_tokens: Texts = ()
    """Tokens of the target's vocabulary that no output may hold."""
    diverse_groups: Positive = 2
    """Groups of diverse beam search; beam_size must be a multiple of it."""
    diverse_strength: Annotated[float, Field(ge=0.0)] = 0.5
    """What a token costs, in nats, for each earlier group that took it at the same step."""
    num_samples: Positive = 1
    """Outputs that sampling draws for each source; the best num_hypotheses of them are kept."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Sampling: below 1 likely tokens become likelier, above 1 less so."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sampling: only so many of the likeliest tokens; 0: all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sampling: only the likeliest tokens that together reach this probability."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of the sampling; an output depends on it and on the source alone."""
    minimum_risk: Literal["none", "edit", "chrf"] = "none"
    """Minimum Bayes risk: choose the candidate that is closest, by edit distance or chrF, to all candidates (the beam, or the samples)."""
    regex: str = ""
    """Regular expression that every output matches as a whole, written as for Rust's regex crate; computed by PyTorch, as all that constrains the output."""
    json_schema: str = ""
    """JSON schema that every output conforms to: a file, or the schema itself if it begins with {."""
    choices: str = ""
    """File of the only possible outputs, one a line."""
    grammar: str = ""
    """File of a grammar, in the Lark format, whose language every output is of."""
    token_scores: bool = False
    """Give the tokens of each output and the log-probability of each (--jsonl)."""
    alignment: bool = False
    """Give the attention of each token of the output over the tokens of the source (--jsonl)."""
    batch_tokens: Positive = 8192
    """Largest batch of sources, in tokens, padding counted; each hypothesis of a beam counts."""
    truncation_mark: str = " [truncated]"
    """What is put behind an output that reached its longest length without ending by itself."""

    @property
    def num_candidates(self) -> int:
        """Hypotheses that a search makes for each source."""
        return self.num_samples if self.method == "sampling" else self.beam_size

    @property
    def num_searched(self) -> int:
        """Hypotheses that a search returns: all candidates where the least risky are chosen."""
        return self.num_hypotheses if self.minimum_risk == "none" else self.num_candidates


class EvaluationSettings(Section):
    """How outputs are compared with their references."""

    task: Literal["auto", "text", "phones", "records"] = "auto"
    """What the targets are: text (WER over words, CER, BLEU, chrF, TER); phones (PER over symbols, where WER is the part of the rows that are not exact); records (JSON objects, or lines "field: value": precision, recall and F1 of the fields too). auto: records where every reference is one, phones where target tokens are symbols, else text, without BLEU and TER where no target has four words."""
    bleu_tokenizer: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    """How sacrebleu cuts text into words for BLEU; char or zh for languages without spaces."""
    confidence_level: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    """How often an interval holds the score that more rows of the same kind would give."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Sets of rows that are drawn, with replacement, to make an interval."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of that drawing."""
    report: Literal["html", "none"] = "html"
    """What fit writes of its run for people: report.html in the model folder, which opens offline."""


class Settings(Section):
    """All settings, by section."""

    version: str = ""
    """Version of dragoman that wrote these settings; written by dragoman."""
    preset: Literal["auto", "tiny", "small", "medium", "large"] = "auto"
    """Values for all that is not set by hand; auto goes by the number of pairs and their lengths."""
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    optimization: OptimizationSettings = OptimizationSettings()
    training: TrainingSettings = TrainingSettings()
    decoding: DecodingSettings = DecodingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
