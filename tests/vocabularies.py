"""Tokenizers of every kind, trained on a few lines, and what a constraint takes in their tokens."""

import functools

from conftest import EOS
from dragoman.decoding.search_config import resolve_search
from dragoman.settings import DecodingSettings, SideSettings
from dragoman.tokenizers.tokenizer import FIRST_TEXT_ID, PairTokenizer, Tokenizer

LINES = [
    '{"name":"ada","age":36,"tags":[true,false,null]}',
    '{ "name" : "bob" , "age" : 150 , "tags" : [ true , false ] }',
    "(1+2)+345 ( 67 + 89 )",
    "12-34 56-78 90 - 12 ja nein ja! nein!",
    "yes no maybe  yes no",
    "abc cab bca aab straße Größe é 😀 \n",
]
SETTINGS = {
    "bpe": SideSettings(kind="bpe", vocab_size=300),
    "unigram": SideSettings(kind="unigram", vocab_size=300),
    "characters": SideSettings(kind="characters"),
    "symbols": SideSettings(kind="symbols"),
    "regex": SideSettings(kind="regex", pattern=r"\w+|[^\w]"),
}
KINDS = list(SETTINGS)


@functools.cache
def make_tokenizer(kind, features=0):
    """Target and source share a vocabulary where there are features."""
    target = Tokenizer.train(LINES, SETTINGS[kind])
    source = target if features else Tokenizer.train(LINES, SETTINGS["characters"])
    symbols = {f"<{i}>": source.vocab_size + i for i in range(features)}
    return PairTokenizer(source=source, target=target, features=symbols)


def spell(tokenizer, ids):
    """The bytes of `ids` in the target, joined: what `decode_target` decodes."""
    pieces = tokenizer.target.token_bytes()
    return tokenizer.target.separator.encode().join([pieces[i] for i in ids])


def list_texts(tokenizer):
    return range(FIRST_TEXT_ID, tokenizer.target.vocab_size)


def constrain(tokenizer, **values):
    return resolve_search(DecodingSettings(**values), tokenizer).constraint


def feed(state, tokenizer, text):
    """The state after the canonical tokens of `text`, each of which must be allowed."""
    for token in tokenizer.target.encode(text):
        assert state.allowed()[token], (text, token)
        state = state.advance(token)
    return state


def accepts(state, tokenizer, text):
    for token in tokenizer.target.encode(text):
        if not state.allowed()[token]:
            return False
        state = state.advance(token)
    return bool(state.allowed()[EOS])


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)
