// The explorer: a list of features to search, filter and sort; a start page; one feature at a time.
// Everything it shows comes from scripts beside it, so that it also opens from a folder: data/index.js
// calls musaeIndex once, data/<layer>-<part>.js calls musaePart when a feature of it is first wanted.
(() => {
  const { html, share } = musaeFeature;
  const PAGE = 60;  // lines of the list at once
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d31", "#7b5ea7"];
  const $ = (id) => document.getElementById(id);
  const parts = {};  // "layer/part": { cards, waiting }
  let atlas, features, shown = [], drawn = 0, current = null, dots = [], painting = 0;

  // -- the data

  window.musaeIndex = (index) => {
    atlas = index;
    const concepts = index.concepts.map((c) => c[0].toLowerCase());
    features = index.layers.flatMap((layer, l) => layer.ids.map((id, i) => {
      const pairs = layer.follows[i];  // concept, 100 × AUC, concept, …; the best found comes first
      const auc = {};
      for (let k = 0; k < pairs.length; k += 2) auc[pairs[k]] = pairs[k + 1] / 100;
      const name = layer.names[id] || "";
      const words = [name.toLowerCase(), ...Object.keys(auc).map((c) => concepts[c])].join(" ");
      return {
        layer: l, id, i, name, words, auc, first: pairs.length ? pairs[0] : -1,
        density: layer.density[i], rate: layer.rate[i], peak: layer.peak[i],
        kept: layer.kept[i] === "1", x: layer.x[i] / 1000, y: layer.y[i] / 1000,
      };
    }));
    start();
  };

  window.musaePart = (key, cards) => {
    const part = parts[key];
    part.cards = new Map(cards.map((card) => [card.id, card]));
    part.waiting.forEach((tell) => tell());
  };

  const load = (key) => new Promise((resolve, reject) => {
    if (parts[key] && parts[key].cards) return resolve();
    if (parts[key]) return parts[key].waiting.push(resolve);
    parts[key] = { waiting: [resolve] };
    const script = document.createElement("script");
    script.src = `data/${key}.js?v=${atlas.version}`;
    script.onerror = () => { delete parts[key]; reject(new Error(`data/${key}.js is missing`)); };
    document.head.append(script);
  });

  const href = (layer, id) => `#layer-${layer}/feature-${id}`;
  const find = (layer, id) => features.find((f) => f.id === id && atlas.layers[f.layer].layer === layer);
  const label = (f) => f.name || (f.first >= 0 ? atlas.concepts[f.first][0] : "");

  // -- the list

  const wanted = () => {
    const terms = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const number = terms.length === 1 && /^\d+$/.test(terms[0]) ? terms[0] : null;
    const layer = $("layer") ? $("layer").value : "";
    const concept = $("concept").value;
    const [least, low, high] = ["auc", "low", "high"].map((id) => +$(id).value);
    const kept = $("kept").checked;
    const best = concept === "" ? (f) => f.auc[f.first] ?? -1 : (f) => f.auc[concept] ?? -1;
    const pass = (f) =>
      (layer === "" || f.layer === +layer) && (!kept || f.kept) && (concept === "" || concept in f.auc) &&
      f.density >= low && f.density <= high && (!least || best(f) >= least) &&
      (number ? String(f.id).startsWith(number) : terms.every((term) => f.words.includes(term)));
    const by = {
      auc: (a, b) => best(b) - best(a), often: (a, b) => b.density - a.density,
      seldom: (a, b) => a.density - b.density, peak: (a, b) => b.peak - a.peak, number: () => 0,
    }[$("sort").value];
    const found = features.filter(pass).sort((a, b) => by(a, b) || a.layer - b.layer || a.id - b.id);
    if (number) found.sort((a, b) => (String(b.id) === number) - (String(a.id) === number));
    return { found, concept };
  };

  const line = (f, concept) => {
    const { layer } = atlas.layers[f.layer];
    const c = concept === "" ? f.first : +concept;
    const words = concept === "" ? label(f) : atlas.concepts[c][0];
    const auc = c >= 0 ? f.auc[c].toFixed(2) : "";
    const here = current && f === current ? ' aria-current="true"' : "";
    return `<li><a href="${html(href(layer, f.id))}"${here}><b>${f.id}</b>` +
      (atlas.layers.length > 1 ? `<i><span class="unseen">layer </span>${html(layer)}</i>` : "") +
      `<span class="what">${html(words) || '<span class="muted">–</span>'}</span>` +
      `<span class="n">${auc && '<span class="unseen">AUC </span>' + auc}</span>` +
      `<span class="n"><span class="unseen">fires in </span>${share(f.density)}</span></a></li>`;
  };

  const more = () => {
    const { concept } = shown;
    const next = shown.found.slice(drawn, drawn + PAGE).map((f) => line(f, concept)).join("");
    $("list").insertAdjacentHTML("beforeend", next);
    drawn = Math.min(drawn + PAGE, shown.found.length);
    $("more").hidden = drawn >= shown.found.length;
    $("more").textContent = `Show ${Math.min(PAGE, shown.found.length - drawn)} more of ${(shown.found.length - drawn).toLocaleString("en")}`;
  };

  const update = () => {
    const begun = performance.now();
    shown = wanted();
    drawn = 0;
    $("list").innerHTML = "";
    more();
    const n = shown.found.length;
    $("count").textContent = n ? `${n.toLocaleString("en")} of ${features.length.toLocaleString("en")} features`
      : "No feature fits: loosen a filter or search for something else.";
    document.documentElement.dataset.searchMs = (performance.now() - begun).toFixed(1);
    clearTimeout(painting);  // the map may wait until the typing stops
    painting = setTimeout(paint, 120);
  };

  // -- the map

  const paint = () => {
    const canvas = $("map");
    if (!canvas || !canvas.clientWidth) return;
    const ratio = window.devicePixelRatio || 1;
    const size = canvas.clientWidth;
    canvas.width = canvas.height = size * ratio;
    const draw = canvas.getContext("2d");
    draw.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const [faint, muted] = ["--line", "--muted"].map((name) => style.getPropertyValue(name));
    const layer = +($("map-layer") ? $("map-layer").value : 0);
    const visible = new Set(shown.found);
    const place = (f) => [8 + f.x * (size - 16), 8 + f.y * (size - 16)];
    const groups = atlas.groups;
    dots = [];
    const here = features.filter((f) => f.layer === layer && f.x >= 0);
    const radius = here.length > 1500 ? 2 : 3;
    const dot = (f, colour, r) => {
      const [x, y] = place(f);
      draw.fillStyle = colour;
      draw.beginPath();
      draw.arc(x, y, r, 0, 7);
      draw.fill();
      return [x, y];
    };
    draw.fillStyle = faint;
    here.filter((f) => !visible.has(f)).forEach((f) => {
      const [x, y] = place(f);
      draw.fillRect(x - 1, y - 1, 2, 2);
    });
    here.filter((f) => visible.has(f)).forEach((f) => {
      const g = f.first >= 0 ? groups.indexOf(atlas.concepts[f.first][2]) : -1;
      const colour = g < 0 ? muted : COLOURS[Math.min(g, COLOURS.length - 1)];
      const [x, y] = dot(f, colour, radius);
      dots.push({ f, x, y });
    });
  };

  const nearest = (event) => {
    const box = $("map").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = null, least = 144;
    for (const dot of dots) {
      const far = (dot.x - x) ** 2 + (dot.y - y) ** 2;
      if (far < least) [best, least] = [dot, far];
    }
    return best && best.f;
  };

  // -- the start page

  const home = () => {
    const many = atlas.layers.length > 1;
    const link = (l, id) => `<a href="${html(href(atlas.layers[l].layer, id))}">${many ? `${html(atlas.layers[l].layer)} / ` : ""}${id}</a>`;
    const layers = atlas.layers.map((layer) =>
      `<tr><th scope="row">${html(layer.layer)}</th><td class="n">${layer.features.toLocaleString("en")}</td>` +
      `<td class="n">${layer.ids.length.toLocaleString("en")}</td><td class="n">${layer.passed.toLocaleString("en")}</td>` +
      `<td class="n">${layer.l0.toFixed(1)}</td></tr>`).join("");
    const concepts = atlas.best.map(([c, l, id, auc]) =>
      `<tr><td>${html(atlas.concepts[c][0])}</td><td>${atlas.concepts[c][1]}</td><td class="n">${link(l, id)}</td>` +
      `<td class="n">${auc.toFixed(2)}</td></tr>`).join("");
    const missing = atlas.best.filter(([, , , auc]) => auc < 0.7).length;
    const filter = atlas.layers.map((layer) =>
      `<h4>${many ? `Layer ${html(layer.layer)}: ` : ""}features kept</h4>` +
      `<div class="wide"><table><thead><tr><th scope="col">reading</th><th scope="col">rate from</th>${layer.sensitivity.highs.map((h) =>
        `<th scope="col">to ${share(h)}</th>`).join("")}</tr></thead><tbody>${layer.sensitivity.rows.map(([by, low, ...counts]) =>
        `<tr><td>${by}</td><td class="n">${share(low)}</td>${counts.map((n) => `<td class="n">${n ?? ""}</td>`).join("")}</tr>`)
        .join("")}</tbody></table></div>`).join("");
    const legend = atlas.groups.slice(0, COLOURS.length).map((g, i) =>
      `<span><i style="background:${COLOURS[i]}"></i>${html(i === COLOURS.length - 1 && atlas.groups.length > COLOURS.length ? "other concepts" : g)}</span>`)
      .join("") + `<span><i style="background:var(--muted)"></i>follows none</span>`;
    const pick = many ? `<label for="map-layer">Layer</label> <select id="map-layer">${atlas.layers.map((layer, l) =>
      `<option value="${l}">${html(layer.layer)}</option>`).join("")}</select>` : "";
    $("home").innerHTML = `<h2>What is here</h2><div class="wide"><table><thead><tr><th scope="col">layer</th><th scope="col">features</th>` +
      `<th scope="col">that fire</th><th scope="col">pass the filter</th><th scope="col">at a time</th></tr></thead><tbody>${layers}</tbody></table></div>` +
      `<p class="note">Over ${atlas.frames.toLocaleString("en")} frames of ${atlas.clips.length.toLocaleString("en")} clips. Choose a feature in the list to hear it.</p>` +
      `<h3>Map</h3><p class="note">Features whose decoder directions are alike lie near each other (t-SNE). Colours say which kind of ` +
      `concept a feature follows; what the filters leave out is faint. Click a dot to open it; the list holds the same features.</p>` +
      `<p>${pick}</p><canvas id="map" role="img" aria-label="Map of the features; the list holds the same"></canvas>` +
      `<p class="legend">${legend}</p><p class="note" id="map-tip" aria-hidden="true">&nbsp;</p>` +
      (atlas.best.length ? `<h3>Concepts, and the feature that follows each best</h3>` +
        `<p class="note">Chosen on one half of the compositions, measured on the other. For ${missing} of ${atlas.best.length} no single ` +
        `feature reaches 0.70: they were not found.</p><div class="wide tall" tabindex="0" role="region" aria-label="Concepts and features"><table>` +
        `<thead><tr><th scope="col">concept</th><th scope="col">of a</th><th scope="col">feature</th><th scope="col">AUC</th></tr></thead>` +
        `<tbody>${concepts}</tbody></table></div>` : "") +
      `<h3>How much hangs on the filter</h3><p class="note">S1’s filter keeps features whose activation rate lies between 1 % and 25 %. ` +
      `“rate”: share of a clip’s frames, averaged over clips (used here); “share”: share of clips in which it fires at all.</p>${filter}`;
    const canvas = $("map");
    canvas.addEventListener("click", (event) => {
      const f = nearest(event);
      if (f) location.hash = href(atlas.layers[f.layer].layer, f.id);
    });
    canvas.addEventListener("mousemove", (event) => {
      const f = nearest(event);
      canvas.style.cursor = f ? "pointer" : "";
      $("map-tip").textContent = f ? `Feature ${f.id}${label(f) && ` · ${label(f)}`}` : "\u00a0";
    });
    if (pick) $("map-layer").addEventListener("change", paint);
  };

  // -- one feature

  // What feature.js wants, from the index and the feature's own part.
  const gather = (f, card) => {
    const layer = atlas.layers[f.layer];
    const words = (other, id) => { const g = find(other, id); return g ? label(g) : ""; };
    const list = (pairs, other) => pairs.map(([id, value]) => [other, id, value, words(other, id)]);
    return {
      id: f.id, layer: layer.layer, name: f.name, density: f.density, rate: f.rate, share: card.share,
      peak: f.peak, median: card.median, kept: f.kept, known: atlas.concepts.length > 0,
      follows: card.follows.map(([c, auc]) => [atlas.concepts[c][0], atlas.concepts[c][1], auc]),
      marked: card.marked >= 0 ? atlas.concepts[card.marked][0] : "",
      examples: card.examples.map((e) => ({ ...atlas.clips[e.clip], ...e })),
      relatives: [
        ["Like directions (cosine)", list(card.near, layer.layer)],
        ["Fire together (phi)", list(card.together, layer.layer)],
        ...Object.entries(card.matches).map(([other, pairs]) =>
          [`The same in layer ${other} (correlation)`, list(pairs, other)]),
      ],
    };
  };

  const open = async (f, focus) => {
    current = f;
    const { layer } = atlas.layers[f.layer];
    const key = `${layer}-${Math.floor(f.i / atlas.part)}`;
    try {
      await load(key);
    } catch (error) {
      $("said").textContent = `${error.message}: publish the atlas again.`;
      return;
    }
    if (current !== f) return;
    document.querySelectorAll("audio").forEach((audio) => audio.pause());
    musaeFeature($("feature"), gather(f, parts[key].cards.get(f.id)), (other, id) => find(other, id) && href(other, id));
    document.documentElement.dataset.view = "feature";
    document.title = `Feature ${f.id}, layer ${layer} – ${atlas.title}`;
    const at = shown.found.indexOf(f);
    for (const [id, step] of [["previous", -1], ["next", 1]]) {
      const other = at < 0 ? null : shown.found[at + step];
      $(id).hidden = !other;
      if (other) $(id).href = href(atlas.layers[other.layer].layer, other.id);
    }
    document.querySelectorAll("#list [aria-current]").forEach((a) => a.removeAttribute("aria-current"));
    const mine = $("list").querySelector(`a[href="${href(layer, f.id)}"]`);
    if (mine) mine.setAttribute("aria-current", "true");
    $("said").textContent = `Feature ${f.id} of layer ${layer}${label(f) && `, ${label(f)}`}`;
    $("reading").scrollTop = 0;
    window.scrollTo(0, 0);
    if (focus) $("feature").querySelector("h2").focus({ preventScroll: true });
  };

  const close = () => {
    current = null;
    document.querySelectorAll("audio").forEach((audio) => audio.pause());
    document.documentElement.dataset.view = "home";
    document.title = atlas.title;
    document.querySelectorAll("#list [aria-current]").forEach((a) => a.removeAttribute("aria-current"));
    paint();
  };

  const go = (focus) => {
    const asked = location.hash.match(/^#layer-([^/]+)(?:\/feature-(\d+))?$/);
    const layer = asked && atlas.layers.findIndex((l) => l.layer === asked[1]);
    if (asked && layer >= 0 && !asked[2] && $("layer")) {
      $("layer").value = layer;
      update();
    }
    const f = asked && asked[2] && find(asked[1], +asked[2]);
    if (f) return open(f, focus);
    close();
    if (asked && asked[2]) {
      $("said").textContent = $("missing").textContent = layer < 0 ? `There is no layer ${asked[1]} here.`
        : `Feature ${asked[2]} of layer ${asked[1]} never fires in this music, or does not exist.`;
    } else $("missing").textContent = "";
  };

  // -- all of it

  const start = () => {
    const groups = {};
    atlas.concepts.forEach(([name, , group], c) => (groups[group] ??= []).push([c, name]));
    $("concept").insertAdjacentHTML("beforeend", Object.entries(groups).map(([group, list]) =>
      `<optgroup label="${html(group)}">${list.map(([c, name]) => `<option value="${c}">${html(name)}</option>`).join("")}</optgroup>`).join(""));
    home();
    let waiting = 0;
    $("filters").addEventListener("input", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(update); });
    $("filters").addEventListener("submit", (event) => { event.preventDefault(); update(); });
    $("filters").addEventListener("reset", () => setTimeout(update));
    $("more").addEventListener("click", () => {
      const first = drawn;
      more();
      $("list").children[first].querySelector("a").focus();
    });
    // Arrow keys walk down from the search field through the list.
    document.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const inside = document.activeElement.closest("#list li");
      if (!step || !(inside || document.activeElement === $("search"))) return;
      const next = inside ? (step > 0 ? inside.nextElementSibling : inside.previousElementSibling) : step > 0 && $("list").firstElementChild;
      event.preventDefault();
      (next ? next.querySelector("a") : $("search")).focus();
    });
    let last = 0;
    addEventListener("resize", () => { if (innerWidth !== last) { last = innerWidth; paint(); } });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { theme(); paint(); });
    addEventListener("hashchange", () => go(true));
    update();
    go(false);
    document.documentElement.dataset.ready = performance.now().toFixed(0);
  };

  const theme = () => {
    document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  };
  theme();
})();
