// SPDX-License-Identifier: MIT
// Tests of UTF-8, character classes, lower case and composition, on examples of the Unicode Standard.
#include <doctest/doctest.h>

#include <lpo/io/unicode.hpp>
#include <string>

using namespace lpo::detail;

namespace {

std::string nfc(std::string_view text) { return encode_utf8(normalize_nfc(decode_utf8(text))); }
std::string lower(std::string_view text, bool final_sigma = true) {
  return encode_utf8(lower_case(decode_utf8(text), final_sigma));
}

}  // namespace

TEST_CASE("UTF-8 of every length goes there and back") {
  const std::u32string codes = {0x24, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x10000, 0x10ffff};
  CHECK(decode_utf8(encode_utf8(codes)) == codes);
}

TEST_CASE("each byte that is not UTF-8 becomes one replacement character") {
  CHECK(decode_utf8("a\xff"
                    "b") == U"a\ufffdb");
  CHECK(decode_utf8("\xc3") == U"\ufffd");             // cut off
  CHECK(decode_utf8("\xc0\xaf") == U"\ufffd\ufffd");   // overlong
  CHECK(decode_utf8("\xe0\x80\xaf").size() == 3);      // overlong
  CHECK(decode_utf8("\xed\xa0\x80").size() == 3);      // surrogate
  CHECK(decode_utf8("\xf4\x90\x80\x80").size() == 4);  // beyond U+10FFFF
  CHECK(decode_utf8("\xe2\x82"
                    "a") == U"\ufffd\ufffd\u0061");  // cut off in the middle
}

TEST_CASE("character classes") {
  CHECK(character_class(U'a') == CharacterClass::letter);
  CHECK(character_class(0x4e00) == CharacterClass::letter);
  CHECK(character_class(U'7') == CharacterClass::number);
  CHECK(character_class(0x2167) == CharacterClass::number);     // Roman numeral eight
  CHECK(character_class(0x301) == CharacterClass::other);       // combining acute accent
  CHECK(character_class(0x1f600) == CharacterClass::other);     // grinning face
  CHECK(character_class(0x200d) == CharacterClass::control);    // zero width joiner
  CHECK(character_class(0x10ffff) == CharacterClass::control);  // not a character
  CHECK(character_class(0x3000) == CharacterClass::separator);
  CHECK(is_white_space(0x3000));
  CHECK_FALSE(is_white_space(0x200b));
}

TEST_CASE("lower case") {
  CHECK(lower("ÀÉÎ ЖЯ ΩΔ Ⅷ ẞ Ǆǅ K") == "àéî жя ωδ ⅷ ß ǆǆ k");
  CHECK(lower("İ") == "i\u0307");
  CHECK(lower("ΟΔΥΣΣΕΥΣ") == "οδυσσευς");
  CHECK(lower("ΣΑΣ. Σ") == "σας. σ");
  CHECK(lower("ΣΑΣ", false) == "σασ");
}

TEST_CASE("composition") {
  CHECK(nfc("e\u0301") == "\u00e9");
  CHECK(nfc("\u1e9b\u0323") == "\u1e9b\u0323");  // Unicode Standard Annex 15, table 5
  CHECK(nfc("\u1e0a\u0323") == "\u1e0c\u0307");  // marks are put in order first
  CHECK(nfc("q\u0307\u0323") == "q\u0323\u0307");
  CHECK(nfc("\u212b \u2126 \u212a") == "\u00c5 \u03a9 K");  // singletons
  CHECK(nfc("\u1112\u1161\u11ab") == "\ud55c");             // Hangul
  CHECK(nfc("\uac00\u11a8") == "\uac01");
  CHECK(nfc("\u0958") == "\u0915\u093c");  // excluded from composition
  CHECK(nfc("\u0301a") == "\u0301a");
}
