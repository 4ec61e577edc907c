"""Tokenizer: words to numbers and back, and what it says to a word that it does not know."""

import pytest
import torch

from companion import text

WORDS = ("a", "dolphin", "fox", "of", "red")


@pytest.fixture
def tokenize():
    return text.Tokenizer(WORDS, length=4)


def test_words_to_numbers(tokenize):
    tokens = tokenize(["a red fox", "dolphin"])
    assert tokens.tolist() == [[1, 5, 3, 0], [2, 0, 0, 0]] and tokens.dtype == torch.int64
    assert tokenize("a red fox").shape == (1, 4) and tokenize([]).shape == (0, 4)
    assert tokenize(("a", "of")).tolist() == [[1, 0, 0, 0], [4, 0, 0, 0]]


def test_and_back(tokenize):
    prompts = ["a red fox", "", "of dolphin a red"]
    assert tokenize.decode(tokenize(prompts)) == prompts


@pytest.mark.parametrize(
    "prompt", ["A Red FOX", " a  red\tfox ", "a red fox.", "a, red: fox!", '"a red" (fox)', "'a' red fox?"]
)
def test_capitals_and_marks_make_no_difference(tokenize, prompt):
    assert torch.equal(tokenize(prompt), tokenize("a red fox"))


@pytest.mark.parametrize("prompt", ["", "   ", "...", " , "])
def test_nothing_is_no_text(tokenize, prompt):
    assert (tokenize(prompt) == 0).all()


def test_a_word_it_does_not_know(tokenize):
    with pytest.raises(ValueError, match=r"the word 'dolfin' of the prompt 'a dolfin' .* do you mean dolphin\?"):
        tokenize("a dolfin")
    with pytest.raises(ValueError, match=r"'xyzzy' .* see tokenizer.words"):
        tokenize(["a fox", "xyzzy"])


def test_a_prompt_too_long(tokenize):
    assert tokenize("a red red fox").shape == (1, 4)
    with pytest.raises(ValueError, match=r"the prompt 'a red red red fox' has 5 words; the most is 4"):
        tokenize("a red red red fox")


@pytest.mark.parametrize("prompts", [[3], [None], [["a fox"]], 7])
def test_what_is_not_text(tokenize, prompts):
    with pytest.raises(TypeError):
        tokenize(prompts)


@pytest.mark.parametrize("words", [(), ("a", "a"), ("A",), ("red fox",), ("fox.",), ("",)])
def test_a_vocabulary_that_is_none(words):
    with pytest.raises(ValueError, match="a vocabulary has at least one word"):
        text.Tokenizer(words, 4)


@pytest.mark.parametrize(("length", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
def test_a_length_that_is_none(length, error):
    with pytest.raises(error, match="length"):
        text.Tokenizer(WORDS, length)


def test_vocabulary():
    assert text.vocabulary(["a red fox", "A dolphin, of a fox."]) == WORDS
    assert text.vocabulary([]) == ()
    captions = ["an orange t-shirt", "a t-shirt"]
    tokenize = text.Tokenizer(text.vocabulary(captions), 3)
    assert tokenize.decode(tokenize(captions)) == captions and tokenize.words == ("a", "an", "orange", "t-shirt")


def test_two_tokenizers_of_the_same_words_are_equal(tokenize):
    assert tokenize == text.Tokenizer(list(WORDS), 4) and hash(tokenize) == hash(text.Tokenizer(WORDS, 4))
    assert tokenize != text.Tokenizer(WORDS, 5)
