"use strict";
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const tip = document.getElementById("tip");
  const narrow = window.matchMedia("(max-width: 560px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)");

  // A colour such as "--accent" is a name of the page's style; any other text may begin like that and mean itself.
  function coloured(value, style, key) {
    if (key === "customdata") return value;
    if (typeof value === "string") {
      return key === "color" && value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    }
    if (Array.isArray(value)) return value.map((one) => coloured(one, style, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, coloured(one, style, name)]));
    }
    return value;
  }

  function axis(own, style) {
    const title = own && own.title ? { title: { ...own.title, font: { size: 13 } } } : {};
    return {
      gridcolor: style.getPropertyValue("--line").trim(),
      linecolor: style.getPropertyValue("--line").trim(),
      zerolinecolor: style.getPropertyValue("--line").trim(),
      fixedrange: true,
      ...own,
      ...title,
    };
  }

  function layout(figure, box, style) {
    const map = figure.name === "map";
    const free = { fixedrange: touch.matches };
    return {
      height: parseFloat(box.style.height),
      margin: { l: 48, r: 12, t: map ? 40 : 8, b: map ? 60 : 48 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13,
        color: style.getPropertyValue("--soft").trim() },
      hovermode: "closest",
      dragmode: map && !touch.matches ? "zoom" : false,
      showlegend: false,
      ...coloured(figure.layout, style),
      xaxis: axis({ ...coloured(figure.layout.xaxis, style), ...(map ? free : {}) }, style),
      yaxis: axis({ ...coloured(figure.layout.yaxis, style), ...(map ? free : {}) }, style),
    };
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    for (const figure of figures) {
      const box = document.getElementById(figure.name);
      const data = coloured(figure.data, style).map((trace) =>
        trace.hoverinfo ? trace : { ...trace, hoverinfo: "none" });
      Plotly.react(box, data, layout(figure, box, style), {
        displayModeBar: false, responsive: true, typesetMath: false, showTips: false });
    }
  }

  function line(text, kind) {
    const made = document.createElement("p");
    made.textContent = text;
    if (kind) made.className = kind;
    tip.append(made);
  }

  function fill(told, points) {
    tip.replaceChildren();
    if (typeof told === "string") return line(told);
    line(told.input);
    if (told.output) line("→ " + told.output);
    if (told.label && told.label !== told.output) line("label: " + told.label, "soft");
    if (!told.picks) return line(told.id + (told.times ? " · chosen " + told.times + "×" : " · not chosen"), "soft");
    line("query " + told.id + ", chosen for it:", "soft");
    told.picks.forEach((pick, rank) => {
      const one = points[pick];
      const name = one.label || one.output;
      line(rank + 1 + ". " + (name.length > 24 ? name.slice(0, 23) + "…" : name) + " · " + one.input, "soft pick");
    });
  }

  function place(event) {
    const room = document.documentElement.clientWidth;
    tip.hidden = false;
    tip.style.left = "0px";
    const left = Math.max(12, Math.min(event.pageX + 14, room - tip.offsetWidth - 12));
    const above = event.clientY > window.innerHeight / 2;
    const top = above ? event.pageY - tip.offsetHeight - 14 : event.pageY + 16;
    tip.style.left = left + "px";
    tip.style.top = Math.max(window.scrollY + 8, top) + "px";
  }

  // A query lies among examples, an example that is asked itself right under it: near a query, it is what is meant.
  function queryAt(box, point) {
    const { xaxis, yaxis } = box._fullLayout;
    const queries = box.data[3];
    const apart = queries.x.map((x, place) =>
      Math.hypot(xaxis.d2p(x) - xaxis.d2p(point.x), yaxis.d2p(queries.y[place]) - yaxis.d2p(point.y)));
    const nearest = apart.indexOf(Math.min(...apart));
    return apart[nearest] < 5 ? nearest : -1;
  }

  function lines(box, query) {
    const [points, , , queries] = box.data;
    const picks = query < 0 ? [] : queries.customdata[query].picks;
    const x = picks.flatMap((pick) => [queries.x[query], points.x[pick], null]);
    const y = picks.flatMap((pick) => [queries.y[query], points.y[pick], null]);
    Plotly.restyle(box, { x: [x], y: [y] }, [1]);
  }

  function listen(figure) {
    const box = document.getElementById(figure.name);
    let drawn = null;
    box.on("plotly_hover", ({ points: [point], event }) => {
      const query = figure.name === "map" ? queryAt(box, point) : -1;
      fill(query < 0 ? point.customdata : figure.data[3].customdata[query], figure.data[0].customdata);
      place(event);
      if (figure.name === "map" && query !== drawn) { drawn = query; lines(box, query); }
    });
    box.on("plotly_unhover", () => { tip.hidden = true; });
  }

  function choose() {
    const select = document.getElementById("highlight");
    if (!select) return;
    const [points] = figures.find((one) => one.name === "map").data;
    const labels = [...new Set(points.customdata.map((one) => one.label).filter(Boolean))].sort().slice(0, 300);
    for (const label of labels) select.append(new Option(label, label));
    if (labels.length < 2) select.parentElement.hidden = true;
    select.addEventListener("change", () => {
      const wanted = points.customdata.flatMap((one, place) => (select.value && one.label === select.value ? [place] : []));
      const at = (axis) => [wanted.map((place) => points[axis][place])];
      Plotly.restyle(document.getElementById("map"), { x: at("x"), y: at("y") }, [2]);
    });
  }

  draw();
  figures.forEach(listen);
  choose();
  dark.addEventListener("change", draw);
  document.documentElement.dataset.ready = "yes";
})();
