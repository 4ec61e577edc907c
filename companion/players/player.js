"use strict";
(() => {
  // page.js
  const DASHES = [[], [6, 3], [6, 3, 2, 3], [2, 3]];
  // 16-bit coordinates to units of the picture: (0, 0) is its lower left corner, (1, 1) its upper right.
  const units = (text) => Float32Array.from(new Uint16Array(bytes(text).buffer), (q) => 3 * q / 65535 - 1);

  // A painter reads the data once and returns a function that draws one frame and may return a remark.
  const trajectory = (figure, spec) => {
    const canvas = figure.querySelector("canvas");
    const points = units(spec.points), reference = units(spec.reference), classes = bytes(spec.colors);
    const stride = points.length / spec.labels.length;
    return (frame, ink) => {
      const {pen, x, y, say, left, top, w} = axes(canvas, ink, spec.ticks, spec.size);
      const dots = (data, from, to, radius, colour) => {
        let outside = 0;
        for (let i = from; i < to; i += 2) {
          if (Math.abs(data[i] - 0.5) > 0.5 || Math.abs(data[i + 1] - 0.5) > 0.5) { outside += 1; continue; }
          pen.fillStyle = colour((i - from) / 2);
          pen.beginPath();
          pen.arc(x(data[i]), y(data[i + 1]), radius, 0, 7);
          pen.fill();
        }
        return outside;
      };
      pen.globalAlpha = 0.2;
      dots(reference, 0, reference.length, 1.5, () => ink);
      pen.globalAlpha = 0.9;
      const colour = (n) => COLOURS[classes.length ? classes[n] : 0] || ink;
      const outside = dots(points, frame * stride, (frame + 1) * stride, spec.radius, colour);
      pen.fillStyle = ink;
      if (outside) say(`${outside} outside`, left + w - 6, top + 6, "right", "top");
      return outside ? `, ${outside} points outside` : "";
    };
  };
  const frames = (figure, spec) => {
    const canvases = figure.querySelectorAll("canvas"), pixels = bytes(spec.pixels), {channels} = spec;
    const {width, height} = canvases[0], size = width * height * channels;
    return (frame) => canvases.forEach((canvas, n) => {
      const image = new ImageData(width, height), start = (frame * canvases.length + n) * size;
      for (let k = 0; k < image.data.length; k += 1) {  // k runs over red, green, blue, opacity of each pixel
        const offset = (k >> 2) * channels + (channels === 3 ? k & 3 : 0);
        image.data[k] = (k & 3) === 3 ? 255 : pixels[start + offset];
      }
      canvas.getContext("2d").putImageData(image, 0, 0);
    });
  };

  const curves = (figure, spec) => {
    const canvases = figure.querySelectorAll("canvas"), values = figure.querySelectorAll("output[data-value]");
    const numbers = (text) => Float32Array.from(new Uint16Array(bytes(text).buffer), (q) => q / 65535);
    const across = numbers(spec.x), panels = spec.panels.map((lines) => lines.map(numbers)), flat = spec.values.flat();
    return (frame, ink) => {
      panels.forEach((lines, n) => {
        const {pen, x, y, left, top, w, h} = axes(canvases[n], ink, spec.ticks[n]), at = spec.cursor && spec.cursor[frame];
        pen.beginPath();
        pen.rect(left, top, w, h);
        pen.clip();
        if (spec.cursor) {
          pen.globalAlpha = 0.5;
          pen.fillRect(x(at) - 0.5, top, 1, h);
        }
        lines.forEach((line, k) => {
          const first = line.length > across.length ? frame * across.length : 0;
          pen.globalAlpha = 1;
          pen.strokeStyle = pen.fillStyle = COLOURS[k] || ink;
          pen.lineWidth = 2;
          pen.setLineDash(DASHES[k % DASHES.length]);
          pen.beginPath();
          across.forEach((u, i) => pen.lineTo(x(u), y(line[first + i])));
          pen.stroke();
          if (!spec.cursor) return;
          pen.beginPath();
          pen.arc(x(at), y(line[frame]), 4, 0, 7);  // the cursor stands on a point of each curve
          pen.fill();
        });
      });
      flat.forEach((texts, k) => { values[k].value = texts[frame]; });
    };
  };

  // Every copy of this script sets up whatever players the page has that no copy has set up yet.
  document.querySelectorAll("figure.companion-player:not([data-ready])").forEach((figure) => {
    figure.dataset.ready = "";
    const [button, slider, output] = ["button", "input", ".cp-controls output"].map((name) => figure.querySelector(name));
    const spec = JSON.parse(figure.dataset.spec), paint = {trajectory, frames, curves}[figure.dataset.kind](figure, spec);
    const show = watching(figure, (ink) => {
      output.value = spec.labels[+slider.value];
      slider.setAttribute("aria-valuetext", output.value + (paint(+slider.value, ink) || ""));
    });
    playing(figure, button, slider, show, () => 1000 / spec.fps);
    show();
  });
})();
