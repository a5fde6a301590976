// SPDX-License-Identifier: MIT
// Line and bar plots as inline SVG, coloured by the CSS classes and variables of the page that they stand in.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace examples {

/// Text as HTML or SVG content, or inside a quoted attribute.
inline std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

/// A number with `decimals` digits after the point; a dash if it is not finite.
inline std::string fixed_text(double value, int decimals) {
  if (!std::isfinite(value)) return "–";
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  // No minus sign in front of a zero.
  if (text[0] == '-' && std::string_view(text).find_first_of("123456789") == std::string_view::npos) return text + 1;
  return text;
}

struct PlotSeries {
  std::string name;  ///< for the legend; none if empty
  std::vector<double> x, y;
  std::string kind = "a";  ///< CSS class suffix: stroke s-a, fill f-a
  bool smooth = false;     ///< the values as a faint stroke, their running mean as the second
  bool markers = false;
};

/// A horizontal line with a name.
struct PlotGuide {
  double y = 0;
  std::string name;
};

struct PlotOptions {
  std::string title;  ///< read by screen readers
  std::string x_label, y_label;
  std::vector<PlotGuide> guides;
  double y_low = std::numeric_limits<double>::quiet_NaN();  ///< fixed end of the axis; NaN follows the data
  double y_high = std::numeric_limits<double>::quiet_NaN();
  bool percent = false;  ///< label y as percent
  int width = 480;
  int height = 230;
};

namespace detail {

struct Axis {
  double low = 0, high = 1, step = 0.5;
  int decimals = 1;

  double place(double value) const { return (value - low) / (high - low); }
};

/// About `count` round steps that cover [low, high]; `snap` moves the ends outwards to round numbers.
inline Axis make_axis(double low, double high, int count, bool snap_low, bool snap_high) {
  if (!(std::isfinite(low) && std::isfinite(high))) low = 0, high = 1;
  if (high - low < 1e-12 * std::max(1.0, std::fabs(low))) {
    const double half = std::max(std::fabs(low) * 0.1, 1e-6);
    low -= half;
    high += half;
  }
  const double raw = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  Axis axis;
  axis.step = 10 * power;
  for (const double factor : {1.0, 2.0, 2.5, 5.0}) {
    if (factor * power >= raw * 0.999) {
      axis.step = factor * power;
      break;
    }
  }
  axis.low = snap_low ? std::floor(low / axis.step + 1e-9) * axis.step : low;
  axis.high = snap_high ? std::ceil(high / axis.step - 1e-9) * axis.step : high;
  axis.decimals = 0;
  while (axis.decimals < 8 && std::fabs(axis.step - std::round(axis.step * std::pow(10.0, axis.decimals)) /
                                                        std::pow(10.0, axis.decimals)) > 1e-6 * axis.step)
    ++axis.decimals;
  return axis;
}

inline std::string tick_text(double value, const Axis& axis, bool percent) {
  if (!percent) return fixed_text(value, axis.decimals);
  return fixed_text(100 * value, std::max(0, axis.decimals - 2)) + " %";
}

/// Running mean over a window of `half` values to each side, as far as there are any that are finite.
inline std::vector<double> running_mean(const std::vector<double>& values, std::size_t half) {
  std::vector<double> means(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    double sum = 0;
    int count = 0;
    for (std::size_t k = i - std::min(i, half); k <= std::min(i + half, values.size() - 1); ++k) {
      if (!std::isfinite(values[k])) continue;
      sum += values[k];
      ++count;
    }
    means[i] = count > 0 ? sum / count : std::numeric_limits<double>::quiet_NaN();
  }
  return means;
}

/// The rectangle of the data, and the SVG that is written so far.
class Canvas {
 public:
  Canvas(const PlotOptions& options, const Axis& x, const Axis& y) : options_(options), x_(x), y_(y) {
    right_ = options.width - 12;
    bottom_ = options.height - (options.x_label.empty() ? 24 : 40);
    svg_ += "<svg class=\"plot\" viewBox=\"0 0 " + std::to_string(options.width) + " " + std::to_string(options.height);
    svg_ += "\" role=\"img\" aria-label=\"" + escape_html(options.title) + "\">";
  }

  double column(double x) const { return left_ + x_.place(x) * (right_ - left_); }
  double row(double y) const { return bottom_ - y_.place(y) * (bottom_ - top_); }
  double bottom() const { return bottom_; }

  void add(const char* format, double a, double b, double c = 0, double d = 0) {
    char text[256];
    std::snprintf(text, sizeof text, format, a, b, c, d);
    svg_ += text;
  }
  void text(double x, double y, const char* style, std::string_view content) {
    add("<text x=\"%.1f\" y=\"%.1f\" class=\"", x, y);
    svg_ += style;
    svg_ += "\">";
    svg_ += escape_html(content);
    svg_ += "</text>";
  }

  void axes(bool x_ticks) {
    for (double tick = std::ceil(y_.low / y_.step - 1e-6) * y_.step; tick <= y_.high + 1e-6 * y_.step;
         tick += y_.step) {
      add("<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>", left_, row(tick), right_);
      text(left_ - 7, row(tick) + 3.5, "tick end", tick_text(tick, y_, options_.percent));
    }
    for (double tick = std::ceil(x_.low / x_.step - 1e-6) * x_.step; x_ticks && tick <= x_.high + 1e-6 * x_.step;
         tick += x_.step)
      text(column(tick), bottom_ + 16, "tick mid", tick_text(tick, x_, false));
    add("<path class=\"axis\" d=\"M%.1f %.1fH%.1f\"/>", left_, bottom_, right_);
    if (!options_.x_label.empty()) text((left_ + right_) / 2, bottom_ + 33, "label mid", options_.x_label);
  }

  void guides() {
    for (const PlotGuide& guide : options_.guides) {
      if (!(guide.y >= y_.low && guide.y <= y_.high)) continue;
      add("<path class=\"guide\" d=\"M%.1f %.1fH%.1f\"/>", left_, row(guide.y), right_);
      text(right_ - 2, row(guide.y) - 5, "note end halo", guide.name);
    }
  }

  /// The legend stands above the data, from the left; the y label in front of it.
  void legend(const std::vector<std::pair<std::string, std::string>>& entries) {
    double x = left_;
    if (!options_.y_label.empty()) {
      text(left_ - 34, 13, "label", options_.y_label);
      x = left_ - 34 + 6.2 * static_cast<double>(options_.y_label.size()) + 18;
    }
    for (const auto& [kind, name] : entries) {
      if (name.empty()) continue;
      svg_ += "<path class=\"line s-" + kind;
      add("\" d=\"M%.1f %.1fH%.1f\"/>", x, 9, x + 14);
      text(x + 19, 13, "label", name);
      x += 19 + 6.2 * static_cast<double>(name.size()) + 16;
    }
  }

  void polyline(const std::vector<double>& x, const std::vector<double>& y, const std::string& style) {
    std::string path;
    bool pen_down = false;
    // More points than pixels only make the file larger.
    const std::size_t stride = std::max<std::size_t>(1, x.size() / 1500);
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); i += stride) {
      if (!std::isfinite(x[i]) || !std::isfinite(y[i])) {
        pen_down = false;
        continue;
      }
      char text[64];
      std::snprintf(text, sizeof text, "%c%.1f %.1f", pen_down ? 'L' : 'M', column(x[i]), row(y[i]));
      path += text;
      pen_down = true;
    }
    svg_ += "<path class=\"" + style + "\" d=\"" + path + "\"/>";
  }

  void dots(const std::vector<double>& x, const std::vector<double>& y, const std::string& kind) {
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!std::isfinite(x[i]) || !std::isfinite(y[i])) continue;
      add("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" class=\"dot f-", column(x[i]), row(y[i]));
      svg_ += kind + "\"/>";
    }
  }

  /// A bar with rounded upper corners that stands on the axis.
  void bar(double left, double right, double height, const std::string& kind) {
    const double top = row(height), radius = std::min({3.0, (right - left) / 2, std::max(0.0, bottom_ - top)});
    svg_ += "<path class=\"f-" + kind;
    add("\" d=\"M%.1f %.1fV%.1f", left, bottom_, top + radius);
    add("Q%.1f %.1f %.1f %.1f", left, top, left + radius, top);
    add("H%.1fQ%.1f %.1f ", right - radius, right, top);
    add("%.1f %.1fV%.1fZ\"/>", right, top + radius, bottom_);
  }

  std::string finish() { return svg_ + "</svg>"; }

 private:
  const PlotOptions& options_;
  Axis x_, y_;
  double left_ = 46, right_ = 0, top_ = 26, bottom_ = 0;
  std::string svg_;
};

inline std::string empty_plot(const PlotOptions& options) {
  Canvas canvas(options, {}, {});
  canvas.text(options.width / 2.0, options.height / 2.0, "label mid", "no data");
  return canvas.finish();
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

inline Axis value_axis(Range range, const PlotOptions& options) {
  for (const PlotGuide& guide : options.guides) range.add(guide.y);
  const bool free_low = std::isnan(options.y_low), free_high = std::isnan(options.y_high);
  return make_axis(free_low ? range.low : options.y_low, free_high ? range.high : options.y_high, 4, free_low,
                   free_high);
}

}  // namespace detail

/// Curves over one x axis. Points that are not finite interrupt a curve.
inline std::string line_plot(const std::vector<PlotSeries>& series, const PlotOptions& options) {
  detail::Range x_range, y_range;
  for (const PlotSeries& one : series) {
    for (const double value : one.x) x_range.add(value);
    for (const double value : one.y) y_range.add(value);
  }
  if (x_range.empty() || y_range.empty()) return detail::empty_plot(options);
  detail::Canvas canvas(options, detail::make_axis(x_range.low, x_range.high, 6, false, false),
                        detail::value_axis(y_range, options));
  canvas.axes(true);
  canvas.guides();
  std::vector<std::pair<std::string, std::string>> names;
  for (const PlotSeries& one : series) {
    names.emplace_back(one.kind, one.name);
    const std::size_t half = one.smooth && one.y.size() >= 20 ? std::max<std::size_t>(2, one.y.size() / 25) : 0;
    if (half > 0) canvas.polyline(one.x, one.y, "raw s-" + one.kind);
    canvas.polyline(one.x, half > 0 ? detail::running_mean(one.y, half) : one.y, "line s-" + one.kind);
    if (one.markers) canvas.dots(one.x, one.y, one.kind);
  }
  if (series.size() < 2) names.clear();
  canvas.legend(names);
  return canvas.finish();
}

/// One bar per category, and optionally a curve of the same unit over them.
inline std::string bar_plot(const std::vector<std::string>& categories, const PlotSeries& bars, const PlotSeries& over,
                            const PlotOptions& options) {
  detail::Range range;
  range.add(0);
  for (const double value : bars.y) range.add(value);
  for (const double value : over.y) range.add(value);
  if (bars.y.empty()) return detail::empty_plot(options);
  const auto count = static_cast<double>(bars.y.size());
  detail::Axis x;
  x.low = 0;
  x.high = count;
  detail::Canvas canvas(options, x, detail::value_axis(range, options));
  canvas.axes(false);
  std::vector<double> middles;
  const double gap = count > 30 ? 0.1 : 0.14;
  // Every label needs about 34 units of width.
  const auto every = static_cast<std::size_t>(std::ceil(34 * count / (options.width - 58)));
  for (std::size_t i = 0; i < bars.y.size(); ++i) {
    const auto at = static_cast<double>(i);
    middles.push_back(at + 0.5);
    if (std::isfinite(bars.y[i]) && bars.y[i] > 0)
      canvas.bar(canvas.column(at + gap), canvas.column(at + 1 - gap), bars.y[i], bars.kind);
    if (i < categories.size() && i % every == 0)
      canvas.text(canvas.column(at + 0.5), canvas.bottom() + 16, "tick mid", categories[i]);
  }
  canvas.guides();
  if (!over.y.empty()) {
    canvas.polyline(middles, over.y, "line s-" + over.kind);
    canvas.dots(middles, over.y, over.kind);
    canvas.legend({{bars.kind, bars.name}, {over.kind, over.name}});
  } else {
    canvas.legend({});
  }
  return canvas.finish();
}

/// A plot as a file of its own, light, with colours for the kinds a to f.
inline std::string standalone_svg(std::string plot) {
  static constexpr std::string_view style = "<style>.plot{background:#fff;font-family:sans-serif}.plot text{font-size:11px;fill:#777}"
      ".plot .label,.plot .note{fill:#444}.plot .mid{text-anchor:middle}.plot .end{text-anchor:end}.plot path{fill:none}"
      ".plot .halo{paint-order:stroke;stroke:#fff;stroke-width:4px}.plot .grid{stroke:#e4e4e4}.plot .axis{stroke:#777}"
      ".plot .guide{stroke:#444;stroke-dasharray:3 4}.plot .line{stroke-width:2;stroke-linejoin:round}"
      ".plot .raw{stroke-opacity:.28}.plot .dot{stroke:#fff;stroke-width:1.5}"
      ".s-a{stroke:#2a78d6}.s-b{stroke:#d1495b}.s-c{stroke:#2f9e64}.s-d{stroke:#8a5cc2}.s-e{stroke:#d08a1d}.s-f{stroke:#4a5568}"
      ".plot .f-a{fill:#2a78d6}.plot .f-b{fill:#d1495b}.plot .f-c{fill:#2f9e64}.plot .f-d{fill:#8a5cc2}.plot .f-e{fill:#d08a1d}"
      ".plot .f-f{fill:#4a5568}</style>";
  plot.insert(plot.find('>') + 1, style);
  plot.insert(4, " xmlns=\"http://www.w3.org/2000/svg\"");
  return plot + "\n";
}

}  // namespace examples
