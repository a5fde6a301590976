// SPDX-License-Identifier: MIT
// Tests of the CLIP tokenizer against ids from transformers, and of the files it reads and writes.
#include <doctest/doctest.h>

#include <cstdlib>
#include <lpo/io/clip_tokenizer.hpp>
#include <lpo/io/gzip.hpp>

#include "temporary_directory.hpp"

using lpo::ClipCleanup;
using lpo::ClipTokenizer;
using lpo::FileError;

namespace {

using Ids = std::vector<std::int32_t>;

const std::string data_directory = std::string(LPO_TEST_SOURCE_DIR) + "/tests/io/data/clip_tokenizer";

/// Compares a vocabulary's two clean-ups and its padded forms with golden.json.
void check_golden(const std::string& name, const lpo::ClipVocabulary& vocabulary) {
  const auto golden =
      lpo::parse_json<lpo::SortedJson>(lpo::read_text_file(data_directory + "/golden.json"), "test", "golden");
  const auto texts = golden["texts"].get<std::vector<std::string>>();
  const auto& expected = golden[name];
  const ClipTokenizer basic(vocabulary);
  const ClipTokenizer fast(vocabulary, ClipCleanup::fast);
  ClipTokenizer exclaiming(vocabulary);
  exclaiming.set_pad_token("!");
  REQUIRE(expected["basic"].size() == texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    CAPTURE(texts[i]);
    CHECK(basic.tokenize(texts[i]) == expected["basic"][i].get<Ids>());
    CHECK(fast.tokenize(texts[i]) == expected["fast"][i].get<Ids>());
    if (i >= expected["encoded"].size()) continue;
    CHECK(basic.encode(texts[i]) == expected["encoded"][i].get<Ids>());
    CHECK(exclaiming.encode(texts[i]) == expected["encoded_pad_exclamation"][i].get<Ids>());
  }
}

}  // namespace

TEST_CASE("ids equal transformers' under a small vocabulary") {
  check_golden("tiny", lpo::read_clip_vocabulary(data_directory));
}

TEST_CASE("ids equal transformers' under OpenAI's vocabulary") {
  const char* const merges = std::getenv("LPO_CLIP_MERGES");
  if (merges == nullptr) {
    MESSAGE("skipped: set LPO_CLIP_MERGES to bpe_simple_vocab_16e6.txt.gz");
    return;
  }
  const auto vocabulary = lpo::clip_vocabulary_of_merges(lpo::read_gzip_file(merges), merges);
  CHECK(vocabulary.tokens.size() == 49408);
  check_golden("clip", vocabulary);
}

TEST_CASE("what transformers' two tokenizers see differently") {
  const auto vocabulary = lpo::read_clip_vocabulary(data_directory);
  const ClipTokenizer basic(vocabulary), fast(vocabulary, ClipCleanup::fast);
  // Ids from CLIPTokenizer and CLIPTokenizerFast. The iota below, which the former skips:
  CHECK(basic.tokenize("red\u0345circle") == Ids{513, 518});
  CHECK(fast.tokenize("red\u0345circle") == Ids{513, 137, 483, 518});
  CHECK(basic.tokenize("e\u0345\uac00") == Ids{324, 166, 108, 478});
  CHECK(fast.tokenize("e\u0345\uac00") == Ids{324, 137, 483, 166, 108, 478});
  // Markers with capitals in the middle of punctuation, which the latter finds:
  CHECK(basic.tokenize("!<|EndOfText|>!") == Ids{0, 27, 347, 68, 77, 67, 78, 69, 83, 68, 87, 339, 91, 29, 256});
  CHECK(fast.tokenize("!<|EndOfText|>!") == Ids{256, 597, 256});
  CHECK(fast.tokenize("<|<|ENDOFTEXT|> !") == Ids{27, 347, 597, 256});
  CHECK(fast.tokenize("(<|StartOfText|>)") == Ids{263, 596, 264});
  CHECK(basic.tokenize("red<|ENDOFTEXT|>") == Ids{513, 597});
  CHECK(fast.tokenize("red<|ENDOFTEXT|>") == Ids{513, 597});
}

TEST_CASE("every given word becomes one token, and any other text still has ids") {
  const std::vector<std::string> words = {"the other mother", "there here", "circle", "circles",
                                          "aaaa aaa abab",    "don't",      "été"};
  const auto tokenizer = ClipTokenizer::for_words(words, 16);
  for (const char* word :
       {"the", "other", "Mother", "there", "here", "circle", "circles", "aaaa", "aaa", "abab", "été"})
    CHECK(tokenizer.tokenize(word).size() == 1);
  CHECK(tokenizer.tokenize("don't") == Ids{tokenizer.id_of("don</w>"), tokenizer.id_of("'t</w>")});
  CHECK(tokenizer.decode(tokenizer.tokenize("Zebra 日 circle!")) == "zebra 日 circle !");
  const Ids ids = tokenizer.encode("a circle");
  CHECK(ids.size() == 16);
  CHECK(ids[0] == tokenizer.begin_id());
  CHECK(ids[2] == tokenizer.id_of("circle</w>"));
  CHECK(ids[3] == tokenizer.end_id());
  CHECK(ids[15] == tokenizer.pad_id());
  CHECK(tokenizer.end_id() == tokenizer.vocabulary_size() - 1);
  CHECK(tokenizer.encode(std::string(100, '!') + " " + std::string(100, '?')).size() == 16);
  CHECK(tokenizer.encode("1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9").back() == tokenizer.end_id());
}

TEST_CASE("pairs are merged by rank, all places of one pair before the next") {
  lpo::BytePairEncoding merges;
  merges.add_merge("a", "b");
  merges.add_merge("b", "c</w>");
  merges.add_merge("ab", "ab");
  const auto text = [&](std::string_view word) {
    std::string joined;
    for (const auto symbol : merges.encode(word)) joined += merges.text_of(symbol) + "|";
    return joined;
  };
  CHECK(text("abc") == "ab|c</w>|");
  CHECK(text("bc") == "bc</w>|");
  CHECK(text("ababab") == "abab|a|b</w>|");
  CHECK(text("abababc") == "abab|ab|c</w>|");
  CHECK(text("") == "");
  CHECK(merges.encode(std::string(200000, 'a')).size() == 200000);
}

TEST_CASE("a saved tokenizer is read back") {
  const TemporaryDirectory directory;
  auto tokenizer = ClipTokenizer::for_words({"a red circle \"quoted\" back\\slash"}, 24);
  tokenizer.set_pad_token("!");
  tokenizer.save(directory.file("sub/tokenizer"));
  const auto again = ClipTokenizer::from_directory(directory.file("sub/tokenizer"));
  CHECK(again.model_max_length() == 24);
  CHECK(again.pad_id() == 0);
  CHECK(again.vocabulary().tokens == tokenizer.vocabulary().tokens);
  CHECK(again.encode("a \"red\" cir\\cle!") == tokenizer.encode("a \"red\" cir\\cle!"));
}

TEST_CASE("merges as OpenAI packs them") {
  const TemporaryDirectory directory;
  const auto tokenizer = ClipTokenizer::from_merges("\"bpe#version: 0.2\nr e\nre d</w>\n");
  CHECK(tokenizer.vocabulary_size() == 516);
  CHECK(tokenizer.tokenize("red") == Ids{513});
  CHECK(tokenizer.tokenize("!") == Ids{256});
  // gzip of "hello\n", header fields zero.
  const std::string packed(
      "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\x48\xcd\xc9\xc9\xe7\x02\x00\x20\x30\x3a\x36\x06\x00\x00\x00", 26);
  CHECK(lpo::read_gzip_file(directory.write("a.gz", packed)) == "hello\n");
  CHECK(lpo::read_gzip_file(directory.write("a.txt", "plain")) == "plain");
  CHECK(has_part(message_of<FileError>([&] { lpo::gunzip(packed.substr(0, 20), "a.gz"); }),
                 "a.gz: the compressed data is cut off"));
  CHECK(lpo::gunzip(packed + packed, "a.gz") == "hello\nhello\n");
  CHECK(has_part(message_of<FileError>([&] { lpo::gunzip(packed + "garbage", "a.gz"); }), "[gzip] a.gz: damaged"));
  CHECK(has_part(message_of<FileError>([&] { lpo::gunzip(packed + packed.substr(0, 20), "a.gz"); }), "is cut off"));
  CHECK(has_part(message_of<FileError>([&] { lpo::gunzip(packed + packed, "a.gz", 11); }), "unpacks to more than 11"));
  std::string damaged = packed;
  damaged[14] ^= 1;
  CHECK(has_part(message_of<FileError>([&] { lpo::gunzip(damaged, "a.gz"); }), "[gzip] a.gz: damaged"));
  CHECK(has_part(message_of<FileError>([&] { lpo::gunzip(packed, "a.gz", 5); }), "unpacks to more than 5 bytes"));
}

TEST_CASE("which file decides about the padding") {
  const TemporaryDirectory directory;
  ClipTokenizer::for_words({"red"}).save(directory.path());
  directory.write("special_tokens_map.json", R"({"pad_token": "!"})");
  directory.write("tokenizer_config.json", R"({"pad_token": {"content": "<|endoftext|>"}, "model_max_length": 1e30})");
  CHECK(ClipTokenizer::from_directory(directory.path()).pad_id() == 0);
  CHECK(ClipTokenizer::from_directory(directory.path()).model_max_length() == 77);
  directory.write("tokenizer_config.json",
                  R"({"pad_token": "<|endoftext|>", "added_tokens_decoder": {"600": {"content": "<cat-toy>"}}})");
  const auto tokenizer = ClipTokenizer::from_directory(directory.path());
  CHECK(tokenizer.pad_id() == tokenizer.end_id());
  CHECK(tokenizer.tokenize("red<cat-toy>red") == Ids{tokenizer.id_of("red</w>"), 600, tokenizer.id_of("red</w>")});
  CHECK(tokenizer.vocabulary_size() == 601);
}

TEST_CASE("tokenizer.json in both of its forms") {
  const TemporaryDirectory directory;
  for (const char* merges : {R"(["r e", "re d</w>"])", R"([["r", "e"], ["re", "d</w>"]])"}) {
    directory.write("tokenizer.json", std::string(R"({"model": {"vocab": {"red</w>": 0, "r": 1}, "merges": )") +
                                          merges +
                                          R"(}, "added_tokens": [{"id": 2, "content": "<|startoftext|>"},
                                             {"id": 3, "content": "<|endoftext|>"}]})");
    CHECK(ClipTokenizer::from_directory(directory.path()).tokenize("red rx") == Ids{0, 1, 3});
  }
}

TEST_CASE("broken tokenizer files are named with what is wrong") {
  const TemporaryDirectory directory;
  const auto reason = [&] { return message_of<FileError>([&] { ClipTokenizer::from_directory(directory.path()); }); };
  CHECK(has_part(reason(), "has neither vocab.json nor tokenizer.json"));
  directory.write("vocab.json", R"({"a": 0, "b": 0})");
  CHECK(has_part(reason(), "vocab.json: tokens \"a\" and \"b\" have the same id 0"));
  directory.write("vocab.json", R"({"a": -1})");
  CHECK(has_part(reason(), "token \"a\" has id -1, expected an integer"));
  directory.write("vocab.json", R"(["a"])");
  CHECK(has_part(reason(), "vocabulary is an array of 1, expected an object of token to id"));
  directory.write("vocab.json", R"({"a": 0})");
  CHECK(has_part(reason(), "merges.txt: No such file"));
  directory.write("merges.txt", "#version\na b c\n");
  CHECK(has_part(reason(), "merges.txt: line 2 is \"a b c\", expected two symbols and a space"));
  directory.write("merges.txt", "#version\n");
  CHECK(has_part(reason(), "no token \"<|startoftext|>\", which the settings name"));
  directory.write("added_tokens.json", R"({"": 7})");
  CHECK(has_part(reason(), "added_tokens.json: a token is empty; expected a text"));
  directory.write("tokenizer_config.json", R"({"added_tokens_decoder": {"7": {"content": ""}}})");
  CHECK(has_part(reason(), "tokenizer_config.json: a token is empty; expected a text"));
  directory.write("tokenizer_config.json", R"({"model_max_length": 1})");
  CHECK(has_part(reason(), "model_max_length is 1, expected at least 2"));
}
