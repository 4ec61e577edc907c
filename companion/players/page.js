  // What the scripts of the players share: `source` in _base.py puts it at the beginning of each.
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442"];  // Okabe and Ito's
  const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

  // Sizes a canvas, draws its frame and ticks, and returns where units of the picture lie on it.
  const axes = (canvas, ink, [across, up], size) => {
    const ratio = window.devicePixelRatio || 1, wide = canvas.clientWidth, high = canvas.clientHeight;
    const pen = canvas.getContext("2d"), inside = [Math.max(0, wide - 44), Math.max(0, high - 28)];
    canvas.width = Math.round(wide * ratio);  // also clears it
    canvas.height = Math.round(high * ratio);
    pen.scale(ratio, ratio);
    const scale = size && Math.min(inside[0] / size[0], inside[1] / size[1]);  // without a size the frame fills the canvas
    const [w, h] = size ? [scale * size[0], scale * size[1]] : inside, left = 36 + (inside[0] - w) / 2, top = 6;
    const x = (u) => left + u * w, y = (v) => top + (1 - v) * h;
    const say = (text, px, py, align, baseline) => {
      [pen.textAlign, pen.textBaseline] = [align, baseline];
      pen.fillText(text, px, py);
    };
    pen.fillStyle = pen.strokeStyle = ink;
    pen.font = "11px system-ui, sans-serif";
    pen.globalAlpha = 0.3;
    pen.strokeRect(left, top, w, h);
    across.forEach(([u]) => pen.fillRect(x(u) - 0.5, top + h, 1, 4));
    up.forEach(([v]) => pen.fillRect(left - 4, y(v) - 0.5, 4, 1));
    pen.globalAlpha = 0.75;
    across.forEach(([u, text]) => say(text, x(u), top + h + 7, "center", "top"));
    up.forEach(([v, text]) => say(text, left - 7, y(v), "right", "middle"));
    return {pen, x, y, say, left, top, w, h};
  };

  // Returns a function that draws a figure in the colour of its text, now and whenever theme or size change.
  const watching = (figure, draw) => {
    let ink = "";
    const show = () => {
      if (!figure.isConnected) return;
      ink = getComputedStyle(figure).color;
      const [red, green, blue] = ink.match(/[0-9.]+/g).map(Number);
      figure.style.colorScheme = red + green + blue > 382 ? "dark" : "light";  // for the controls' own drawing
      draw(ink);
    };
    // The colour of the text tells the theme: look at once, and again when a transition may have ended.
    const theme = () => { if (ink !== getComputedStyle(figure).color) show(); };
    const look = () => { theme(); setTimeout(theme, 400); };
    const attributeFilter = ["class", "style", "theme", "data-theme", "data-mode", "data-jp-theme-light"];
    const watcher = new MutationObserver(look), dark = window.matchMedia("(prefers-color-scheme: dark)");
    let watched = false;
    const watch = (on) => {  // a figure that has left the page, as a cell that is run again does, is let go
      if (on === watched) return;
      watched = on;
      dark[on ? "addEventListener" : "removeEventListener"]("change", look);
      if (on) [document.documentElement, document.body].forEach((node) => watcher.observe(node, {attributeFilter}));
      else watcher.disconnect();
    };
    new ResizeObserver(() => { watch(figure.isConnected); show(); }).observe(figure);
    return show;
  };

  // Makes a button walk a slider to its end, `wait` milliseconds a frame, and returns what stops it.
  const playing = (figure, button, slider, show, wait) => {
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      button.textContent = "Play";
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (+slider.value >= +slider.max) slider.value = 0;
      show();
      button.textContent = "Pause";
      const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      timer = setInterval(() => {
        slider.value = +slider.value + 1;
        show();
        if (+slider.value >= +slider.max || !figure.isConnected) stop();
      }, Math.max(wait(), calm ? 500 : 0));
    });
    slider.addEventListener("input", () => { stop(); show(); });
    return stop;
  };
