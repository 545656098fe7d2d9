"use strict";
(() => {
  const at = id => document.getElementById(id);
  const colors = ["#2684ff", "#ffb000", "#ec247a", "#785ef0", "#009e73"];
  const most = 20e6;
  let number = 0, last = null;

  const element = (tag, text, parent) => {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    parent.append(made);
    return made;
  };
  const percent = share => `${(100 * share).toFixed(1)} %`;
  const say = (words, wrong) => {
    at("said").textContent = words;
    at("said").classList.toggle("wrong", Boolean(wrong));
  };

  const boxes = found => {
    const space = "http://www.w3.org/2000/svg", [width, height] = found.size;
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("preserveAspectRatio", "none");
    found.boxes_xyxy.forEach(([x0, y0, x1, y1], i) => {
      for (const [color, line] of [["#000", 5], [colors[(i + 1) % colors.length], 2.5]]) {
        const box = document.createElementNS(space, "rect");
        const values = { x: x0, y: y0, width: x1 - x0, height: y1 - y0, fill: "none", stroke: color, "stroke-width": line };
        for (const [key, value] of Object.entries(values)) box.setAttribute(key, value);
        box.setAttribute("vector-effect", "non-scaling-stroke");
        svg.append(box);
      }
    });
    return svg;
  };

  const views = () => {
    const shown = at("why").checked && last.why.length ? last.why : last.views;
    at("views").replaceChildren();
    shown.forEach((picture, i) => {
      const figure = element("figure", null, at("views"));
      const frame = element("div", null, figure);
      frame.className = "view";
      frame.style.borderColor = colors[i % colors.length];
      const image = element("img", null, frame);
      image.src = picture;
      image.alt = `what look ${i + 1} saw`;
      const [best] = last.looks[`scale_${i + 1}`];
      element("figcaption", `look ${i + 1}: ${best.name}, ${percent(best.probability)}`, figure);
    });
  };

  const marks = found => {
    const share = value => Math.round(100 * value);
    const told = found.usually.map(mark => `${mark.share < mark.other ? "less often " : ""}${mark.name} ` +
      `(${share(mark.share)} % against ${share(mark.other)})`);
    return `Rather than ${found.against}${told.length ? `, usually: ${told.join(", ")}` : ": no known mark tells them apart"}`;
  };

  const show = found => {
    last = found;
    const [best] = found.top;
    at("name").textContent = best.name;
    at("probability").textContent = percent(best.probability);
    at("sure").textContent = !found.sure ? "" : found.sure.level === "unsure" ? "Not sure of anything." :
      `Sure: ${found.sure.name} (${found.sure.level}, ${percent(found.sure.probability)})`;
    at("marks").textContent = found.marks ? marks(found.marks) : "";
    at("photo").replaceChildren();
    const photo = element("img", null, at("photo"));
    photo.src = found.photo;
    photo.alt = "the photo";
    at("photo").append(boxes(found));
    at("why-line").hidden = !found.why.length;
    at("for").textContent = best.name;
    at("against").textContent = found.against || "";
    views();
    at("top").replaceChildren();
    for (const each of found.top) {
      const line = element("li", null, at("top"));
      element("span", each.name, line);
      element("span", percent(each.probability), line).className = "share";
      const bar = element("progress", null, line);
      bar.max = 1;
      bar.value = each.probability;
    }
    at("answer").hidden = false;
  };

  const ask = async file => {
    if (!file) return;
    const own = ++number;
    if (file.size > most) return say(`${file.name || "the photo"} is larger than ${most / 1e6} MB`, true);
    say(`looking at ${file.name || "the photo"} ...`);
    const form = new FormData();
    form.append("photo", file);
    try {
      const response = await fetch("/predict?pictures=1", { method: "POST", body: form });
      const found = await response.json();
      if (own !== number) return;  // a later photo was given meanwhile
      if (!response.ok) return say(found.error || `refused (${response.status})`, true);
      say(file.name || "");
      show(found);
    } catch (error) {
      if (own === number) say("the server does not answer: is racnn serve still running?", true);
    }
  };

  at("file").addEventListener("change", event => { ask(event.target.files[0]); event.target.value = ""; });
  at("why").addEventListener("change", () => last && views());
  for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, event => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
  for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, event => {
    event.preventDefault();
    at("drop").classList.remove("over");
  });
  document.addEventListener("drop", event => ask(event.dataTransfer.files[0]));
  document.addEventListener("paste", event => {
    const item = [...event.clipboardData.items].find(each => each.kind === "file");
    if (item) ask(item.getAsFile());
  });
  fetch("/health").then(response => response.json()).then(found => {
    at("network").textContent = `${found.network}: ${found.classes} classes`;
  }).catch(() => say("the server does not answer", true));
})();
