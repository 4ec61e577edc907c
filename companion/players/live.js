"use strict";
(() => {
  // page.js
  // The numeric part: what companion.networks, schedules, samplers and guidance do, in 64-bit numbers. No page needed.
  const halfToNumber = (bits) => {  // IEEE 754 half precision: 1 bit of sign, 5 of exponent, 10 of fraction
    const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = (bits & 1023) / 1024;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  };
  const decode = ({weights, half}) => {
    const {buffer} = bytes(weights);
    return half ? Float64Array.from(new Uint16Array(buffer), halfToNumber) : new Float64Array(new Float32Array(buffer));
  };

  // networks.MLP of points in the plane, its weights in the order of its state_dict.
  const network = (stored) => {
    const {width, depth, classes} = stored, values = decode(stored);
    let at = 0;
    const take = (length) => values.subarray(at, at += length);
    const linear = (inputs, outputs) => ({inputs, outputs, weight: take(inputs * outputs), bias: take(outputs)});
    const net = {width, classes, time: [linear(width, width), linear(width, width)]};
    net.ofClass = take(classes ? (classes + 1) * width : 0);  // the last row stands for no class
    net.inward = linear(2, width);
    net.blocks = Array.from({length: depth}, () => {
      const norm = {scale: take(width), shift: take(width)};
      return {norm, first: linear(width, width), shift: linear(width, width), second: linear(width, width)};
    });
    net.out = linear(width, 2);
    if (at !== values.length) throw new Error(`the network has ${at} weights, but ${values.length} are stored`);
    return net;
  };
  const silu = (x) => x / (1 + Math.exp(-x));
  // output = input weight^T + bias for rows of points: four points and two outputs at a time, which is what makes it
  // fast. The number of points is a multiple of 4; outputs are even.
  const dense = ({inputs, outputs, weight}, bias, input, output, rows) => {
    for (let r = 0; r < rows; r += 4) {
      const r0 = r * inputs, r1 = r0 + inputs, r2 = r1 + inputs, r3 = r2 + inputs;
      for (let o = 0; o < outputs; o += 2) {
        const w0 = o * inputs, w1 = w0 + inputs, b0 = bias[o], b1 = bias[o + 1];
        let a0 = b0, a1 = b0, a2 = b0, a3 = b0, c0 = b1, c1 = b1, c2 = b1, c3 = b1;
        for (let i = 0; i < inputs; i += 1) {
          const u = weight[w0 + i], v = weight[w1 + i];
          const x0 = input[r0 + i], x1 = input[r1 + i], x2 = input[r2 + i], x3 = input[r3 + i];
          a0 += u * x0; a1 += u * x1; a2 += u * x2; a3 += u * x3;
          c0 += v * x0; c1 += v * x1; c2 += v * x2; c3 += v * x3;
        }
        const p = r * outputs + o;
        output[p] = a0; output[p + outputs] = a1; output[p + 2 * outputs] = a2; output[p + 3 * outputs] = a3;
        output[p + 1] = c0; output[p + outputs + 1] = c1; output[p + 2 * outputs + 1] = c2;
        output[p + 3 * outputs + 1] = c3;
      }
    }
  };
  const apply = (layer, vector) => Float64Array.from(layer.bias, (bias, o) => {
    let sum = bias;
    for (let i = 0; i < layer.inputs; i += 1) sum += layer.weight[o * layer.inputs + i] * vector[i];
    return sum;
  });
  const codeOf = ({width, time, ofClass}, t, cls) => {  // encodings.sinusoidal works in float32, as t is given to it
    const half = width / 2, round = Math.fround, code = new Float64Array(width);
    for (let i = 0; i < half; i += 1) {
      const angle = round(round(1000 * round(t)) * round(Math.pow(10000, round(-i / half))));
      code[i] = round(Math.cos(angle));
      code[half + i] = round(Math.sin(angle));
    }
    const sum = apply(time[1], apply(time[0], code).map(silu));
    return ofClass.length ? sum.map((value, i) => value + ofClass[cls * width + i]) : sum;
  };
  // The network's output for points (x, y, x, y, ...) that share a time and a class.
  const forward = (net, points, t, cls) => {
    const {width} = net, rows = points.length / 2, size = rows * width;
    const output = new Float64Array(2 * rows), code = codeOf(net, t, cls);
    const h = new Float64Array(size), u = new Float64Array(size), v = new Float64Array(size);
    dense(net.inward, net.inward.bias, points, h, rows);
    for (const {norm, first, shift, second} of net.blocks) {
      for (let start = 0; start < size; start += width) {
        let mean = 0, square = 0;
        for (let i = start; i < start + width; i += 1) mean += h[i] / width;
        for (let i = start; i < start + width; i += 1) square += (h[i] - mean) ** 2 / width;
        const inverse = 1 / Math.sqrt(square + 1e-5);
        for (let i = 0; i < width; i += 1) {
          u[start + i] = silu((h[start + i] - mean) * inverse * norm.scale[i] + norm.shift[i]);
        }
      }
      const told = apply(shift, code);
      dense(first, first.bias.map((bias, i) => bias + told[i]), u, v, rows);
      for (let i = 0; i < size; i += 1) v[i] = silu(v[i]);
      dense(second, second.bias, v, u, rows);
      for (let i = 0; i < size; i += 1) h[i] += u[i];
    }
    for (let i = 0; i < size; i += 1) h[i] = silu(h[i]);
    dense(net.out, net.out.bias, h, output, rows);
    return output;
  };

  const cosine = (s) => {  // schedules.Cosine
    const c = Math.PI / (2 * (1 + s)), norm = Math.cos(c * s);
    return {
      alpha: (t) => t === 0 ? 1 : Math.sin(c * (1 - t)) / norm,
      sigma: (t) => t === 0 ? 0 : t === 1 ? 1 : Math.sqrt(Math.sin(c * t) * Math.sin(c * (t + 2 * s))) / norm,
    };
  };
  const halfLogSnr = ({alpha, sigma}, t) => Math.log(alpha(t)) - Math.log(sigma(t));
  const timeOf = (schedule, wanted) => {  // the time at which log(alpha / sigma) is as wanted, by bisection
    let low = 0, high = 1;
    for (let i = 0; i < 90; i += 1) {
      const middle = (low + high) / 2;
      if (halfLogSnr(schedule, middle) > wanted) low = middle; else high = middle;
    }
    return high;
  };
  const linspace = (first, last, count) => Float64Array.from({length: count}, (_, i) => {
    const step = count > 1 ? (last - first) / (count - 1) : 0;
    return i < count / 2 ? first + step * i : last - step * (count - 1 - i);
  });
  const angle = (schedule, count, tMax, tMin) => {  // schedules.angle
    const fine = linspace(halfLogSnr(schedule, tMax), halfLogSnr(schedule, tMin), 20001), width = 1.5;
    const place = fine.map((value) => {
      const away = value + Math.log(0.4);
      return 2 * width * Math.atan(Math.tanh(away / (2 * width))) + 0.02 * away;
    });
    let right = 1;
    return linspace(place[0], place[20000], count).map((wanted) => {
      while (right < 20000 && place[right] < wanted) right += 1;
      const share = (wanted - place[right - 1]) / (place[right] - place[right - 1]);
      return timeOf(schedule, fine[right - 1] + share * (fine[right] - fine[right - 1]));
    });
  };
  const grid = (sampler, schedule, steps) => {  // samplers.grid: of a schedule that ends at alpha = 0
    const first = timeOf(schedule, -Math.log(80)), last = timeOf(schedule, -Math.log(0.01));
    if (sampler === "ddpm" || sampler === "heun") return linspace(first, 0, steps + 1);
    const ts = new Float64Array(steps + 1);
    ts.set(angle(schedule, steps, first, last));
    ts[0] = first;
    if (steps > 1) ts[steps - 1] = last;
    return ts;
  };

  const ROWS = {  // predictions: the network's output stands for a x0 + b eps
    eps: () => [0, 1], x0: () => [1, 0], v: (alpha, sigma) => [-sigma, alpha], velocity: () => [-1, 1],
  };
  // The denoiser (x, t) -> x0_hat; asked for a class and a scale it extrapolates, as guidance.extrapolate does.
  const denoiser = (net, schedule, prediction, {cls = net.classes, scale = 1} = {}) => {
    const answer = (x, t, told) => {
      const alpha = schedule.alpha(t), sigma = schedule.sigma(t), [a, b] = ROWS[prediction](alpha, sigma);
      return forward(net, x, t, told).map((out, i) => (b * x[i] - sigma * out) / (alpha * b - sigma * a));
    };
    const ask = (x, t) => {
      ask.calls += 1;
      const good = answer(x, t, cls);
      if (scale === 1) return good;
      const bad = answer(x, t, net.classes);
      return good.map((value, i) => value + (scale - 1) * (value - bad[i]));
    };
    ask.calls = 0;
    return ask;
  };

  // The samplers: generators that yield x after each step. A sum is sums([[factor, values], ...]).
  const sums = (terms) => terms[0][1].map((_, i) => {
    let total = 0;
    for (const [factor, values] of terms) total += factor * values[i];
    return total;
  });
  const jumpsOf = (schedule, ts) => Array.from({length: ts.length - 1}, (_, i) => {
    const [at, st, as, ss] = [
      schedule.alpha(ts[i]), schedule.sigma(ts[i]), schedule.alpha(ts[i + 1]), schedule.sigma(ts[i + 1]),
    ];
    const upper = ss === 0 ? 0 : Math.sqrt(Math.max(st ** 2 - (at / as * ss) ** 2, 0));
    return {at, st, as, ss, upper, posterior: upper * ss / st, keep: ss / st, move: as - ss / st * at};
  });
  function* ancestral(ask, schedule, x, ts, draw, eta, upper) {  // ddim, and ddpm, which is ddim at eta 1
    for (const [i, jump] of jumpsOf(schedule, ts).entries()) {
      const {at, st, as, ss} = jump, kept = at / as * ss ** 2 / st;
      const keep = Math.sqrt((1 - eta ** 2) * ss ** 2 + (eta * kept) ** 2) / st;
      const std = upper ? jump.upper : eta * jump.posterior, x0 = ask(x, ts[i]);
      x = sums([[keep, x], [as - keep * at, x0]]);
      if (std > 0) x = sums([[1, x], [std, draw()]]);
      yield x;
    }
  }
  function* heun(ask, schedule, x, ts) {
    for (const [i, {st, at, as, ss, keep, move}] of jumpsOf(schedule, ts).entries()) {
      const x0 = ask(x, ts[i]);
      let ahead = sums([[keep, x], [move, x0]]);
      if (at > 0 && ss > 0) {
        const before = st / at, after = ss / as, half = as * (before - after) / 2, there = ask(ahead, ts[i + 1]);
        ahead = sums([[keep, x], [half * (1 / before - move / ss), x0], [half / after, there]]);
      }
      x = ahead;
      yield x;
    }
  }
  function* dpmpp2m(ask, schedule, x, ts) {
    let before = 0, old = null;
    for (const [i, {at, st, as, ss, keep, move}] of jumpsOf(schedule, ts).entries()) {
      const wide = at > 0 && ss > 0 ? Math.log(as / ss) - Math.log(at / st) : 0;
      const push = before ? wide / (2 * before) : 0, x0 = ask(x, ts[i]);
      x = sums([[keep, x], [move * (1 + push), x0], ...(push ? [[-move * push, old]] : [])]);
      [before, old] = [wide, x0];
      yield x;
    }
  }
  const gauss = (() => {  // 64 Gauss-Legendre points and weights: the roots by Newton's method
    const count = 64, points = [], weights = [];
    for (let i = 0; i < count; i += 1) {
      let x = -Math.cos(Math.PI * (i + 0.75) / (count + 0.5)), slope = 0;
      for (let turn = 0; turn < 20; turn += 1) {
        let [last, value] = [1, x];
        for (let n = 2; n <= count; n += 1) [last, value] = [value, ((2 * n - 1) * x * value - (n - 1) * last) / n];
        slope = count * (x * value - last) / (x * x - 1);
        x -= value / slope;
      }
      points.push(x);
      weights.push(2 / ((1 - x * x) * slope ** 2));
    }
    return {points, weights};
  })();
  const shortOf1 = (r) => 1 / (Math.sqrt(1 + r * r) * (r + Math.sqrt(1 + r * r)));
  const lagrange = (nodes, u) => nodes.map((node, j) => nodes.reduce(
    (product, other, k) => k === j ? product : product * (u - other) / (node - other), 1));
  const integrals = (from, to, nodes, sigma) => {  // over r = alpha / sigma, from above 0
    const low = Math.log(from), high = Math.log(to), at = nodes.map(shortOf1), total = nodes.map(() => 0);
    gauss.points.forEach((point, p) => {
      const r = Math.exp((low + high) / 2 + (high - low) / 2 * point), factor = (high - low) / 2 * gauss.weights[p] * r;
      lagrange(at, shortOf1(r)).forEach((value, j) => { total[j] += sigma * factor * value; });
    });
    return total;
  };
  function* adams(ask, schedule, x, ts) {
    const jumps = jumpsOf(schedule, ts), ratios = jumps.map(({at, st}) => at / st), order = 4;
    let settled = x, answers = [];  // the newest first
    const step = (keep, shares) => sums([[keep, settled], ...shares.map((share, j) => [share, answers[j]])]);
    for (const [i, {st, as, ss}] of jumps.entries()) {
      answers = [ask(x, ts[i]), ...answers].slice(0, order);
      const nodes = ratios.slice(Math.max(0, i + 1 - order), i + 1).reverse();
      if (i > 0) settled = step(st / jumps[i - 1].st, integrals(ratios[i - 1], ratios[i], nodes, st));
      x = ss > 0 ? step(ss / st, integrals(ratios[i], as / ss, nodes, ss))
        : step(0, lagrange(nodes.map(shortOf1), 0).map((share) => as * share));
      yield x;
    }
  }
  const SAMPLERS = {
    ddpm: (ask, schedule, x, ts, {draw, variance}) => ancestral(ask, schedule, x, ts, draw, 1, variance === "upper"),
    ddim: (ask, schedule, x, ts, {draw, eta}) => ancestral(ask, schedule, x, ts, draw, eta, false),
    heun, dpmpp_2m: dpmpp2m, adams,
  };
  const walk = (sampler, ask, schedule, x, ts, options) => SAMPLERS[sampler](ask, schedule, x, ts, options);
  // Standard normal numbers from a seed: a 32-bit counter, mixed well, gives uniform ones; then Box and Muller's way.
  const normals = (seed) => {
    let state = seed >>> 0;
    const uniform = () => {
      state = state + 2654435769 >>> 0;
      let mixed = Math.imul(state ^ state >>> 16, 569420461);
      mixed = Math.imul(mixed ^ mixed >>> 15, 1935289751);
      return ((mixed ^ mixed >>> 15) >>> 0) / 2 ** 32 + 2 ** -33;
    };
    return (count) => {
      const drawn = new Float64Array(count);
      for (let i = 0; i < count; i += 2) {
        const radius = Math.sqrt(-2 * Math.log(uniform())), turn = 2 * Math.PI * uniform();
        drawn[i] = radius * Math.cos(turn);
        if (i + 1 < count) drawn[i + 1] = radius * Math.sin(turn);
      }
      return drawn;
    };
  };
  globalThis.companionLive = {decode, network, forward, cosine, grid, denoiser, walk, normals};
  if (!globalThis.document) return;

  // The page: what the reader set is walked in slices, so that the page stays awake, and drawn when it is done.
  const SLICE = 30;  // milliseconds
  const painter = (canvas, spec) => {  // data units to pixels, as players.trajectory draws them
    const [xmin, xmax, ymin, ymax] = spec.extent, size = [xmax - xmin, ymax - ymin];
    const levels = new Uint16Array(bytes(spec.reference).buffer);
    const reference = Float64Array.from(levels, (q, i) => {
      const low = i % 2 ? ymin : xmin, high = i % 2 ? ymax : xmax;
      return low + (3 * q / 65535 - 1) * (high - low);
    });
    return (points, goal, colour, ink) => {
      const {pen, x, y, say, left, top, w, h} = axes(canvas, ink, spec.ticks, size);
      const px = (value) => x((value - xmin) / size[0]), py = (value) => y((value - ymin) / size[1]);
      const dots = (data, radius) => {
        let outside = 0;
        for (let i = 0; i < data.length; i += 2) {
          const [a, b] = [data[i], data[i + 1]];
          if (!(a >= xmin && a <= xmax && b >= ymin && b <= ymax)) { outside += 1; continue; }
          pen.beginPath();
          pen.arc(px(a), py(b), radius, 0, 7);
          pen.fill();
        }
        return outside;
      };
      pen.globalAlpha = 0.2;
      dots(reference, 1.5);
      pen.save();
      pen.beginPath();
      pen.rect(left, top, w, h);
      pen.clip();
      pen.globalAlpha = 0.55;
      pen.beginPath();
      for (let i = 0; goal && i < points.length; i += 2) {
        pen.moveTo(px(points[i]), py(points[i + 1]));
        pen.lineTo(px(goal[i]), py(goal[i + 1]));
      }
      pen.stroke();
      pen.restore();
      pen.globalAlpha = 0.9;
      pen.fillStyle = colour;
      const outside = dots(points, spec.radius);
      pen.fillStyle = ink;
      if (outside) say(`${outside} outside`, left + w - 6, top + 6, "right", "top");
      return outside ? `, ${outside} points outside` : "";
    };
  };

  const setUp = (figure) => {
    const spec = JSON.parse(figure.dataset.spec), schedule = cosine(spec.s), {count} = spec;
    const [canvas, play, slider, output, status] = ["canvas", ".cp-controls button", ".cp-controls input",
      ".cp-controls output", ".cp-status"].map((name) => figure.querySelector(name));
    const paint = painter(canvas, spec), again = figure.querySelector(".cp-live button");
    const controls = Object.fromEntries([...figure.querySelectorAll("[name]")].map((node) => [node.name, node]));
    let net = null, seed = spec.seed, run = 0, walked = {frames: [], ts: []}, goal = {};

    const settings = () => {
      const {sampler, steps, eta, variance, cls, scale} = controls, told = cls ? +cls.value : 0;
      if (eta) eta.disabled = sampler.value !== "ddim";
      if (variance) variance.disabled = sampler.value !== "ddpm";
      if (scale) scale.disabled = told === spec.net.classes;
      for (const node of [steps, eta, scale]) if (node) node.nextElementSibling.value = node.value;
      return {
        sampler: sampler.value, steps: +steps.value, cls: told, scale: scale && !scale.disabled ? +scale.value : 1,
        eta: eta ? +eta.value : 0, variance: variance && variance.value,
      };
    };
    const show = watching(figure, (ink) => {
      const {frames, ts, cls = 0} = walked, at = +slider.value, ended = frames.length > 0 && at === frames.length - 1;
      const remark = paint(frames[at] || [], ended && walked.goal, COLOURS[cls] || ink, ink);
      if (!frames.length) return;
      output.value = `t = ${ts[at].toFixed(3)}`;
      slider.setAttribute("aria-valuetext", output.value + remark);
    });
    const stop = playing(figure, play, slider, show, () => Math.min(2500 / slider.max, 400));

    // Walks with these settings; null if the reader has asked for another walk meanwhile.
    const walking = async (chosen, mine) => {
      const {sampler, steps, cls, scale} = chosen, ts = grid(sampler, schedule, steps), noise = normals(seed ^ 24301);
      const ask = denoiser(net, schedule, spec.prediction, {cls, scale});
      const frames = [normals(seed)(2 * count).map((value) => schedule.sigma(ts[0]) * value)];
      const path = walk(sampler, ask, schedule, frames[0], ts, {...chosen, draw: () => noise(2 * count)});
      let spent = 0, since = performance.now();
      for (const x of path) {
        frames.push(x);
        const slice = performance.now() - since;
        if (slice < SLICE) continue;
        spent += slice;
        await new Promise((resume) => { setTimeout(resume); });
        if (mine !== run) return null;
        since = performance.now();
      }
      return {frames, ts, cls, calls: ask.calls, spent: spent + performance.now() - since};
    };
    const refresh = async () => {
      const mine = run += 1, chosen = settings();
      stop();
      await new Promise((resume) => { setTimeout(resume); });  // a control that is being dragged asks many times
      if (mine !== run) return;
      net = net || network(spec.net);
      const found = await walking(chosen, mine), key = [seed, chosen.cls, chosen.scale].join();
      if (!found) return;
      const steady = spec.goal && !(chosen.sampler === "ddpm" || (chosen.sampler === "ddim" && chosen.eta > 0));
      if (steady && goal.key !== key) {
        const best = await walking({...chosen, sampler: "adams", steps: 40}, mine);
        if (!best) return;
        goal = {key, points: best.frames[40]};
      }
      stop();  // Play may have been pressed meanwhile, on the walk before
      walked = {...found, goal: steady ? goal.points : null};
      slider.max = chosen.steps;  // first: it bounds the value
      slider.value = chosen.steps;
      const twice = chosen.scale === 1 ? "" : " of twice the points";
      const calls = `${found.calls} network call${found.calls > 1 ? "s" : ""}`;
      let line = `${count} samples in ${calls}${twice}: ${Math.ceil(found.spent)} ms.`;
      if (steady) {
        const ends = found.frames[chosen.steps];
        const square = ends.reduce((sum, value, i) => sum + (value - goal.points[i]) ** 2, 0) / count;
        line += ` Error: ${Math.sqrt(square).toFixed(3)}.`;
      } else if (spec.goal) line += " Fresh noise: no error to measure.";
      status.textContent = line;
      figure.dataset.walks = +(figure.dataset.walks || 0) + 1;  // for who waits for the picture
      show();
    };

    Object.values(controls).forEach((node) => node.addEventListener("input", refresh));
    again.addEventListener("click", () => { seed += 1; refresh(); });
    settings();
    const near = new IntersectionObserver((entries) => {  // the first walk waits until the reader comes near
      if (!entries.some((entry) => entry.isIntersecting)) return;
      near.disconnect();
      refresh();
    }, {rootMargin: "300px"});
    near.observe(figure);
  };
  document.querySelectorAll('figure.companion-player[data-kind="live"]:not([data-live])').forEach((figure) => {
    figure.dataset.live = "";
    setUp(figure);
  });
})();
