// Before and after, at the pixels of the result: one of them is one of the screen at 100 %. A native range input moves
// the divider, so that keys, touch and screen readers work by themselves.
(() => {
  "use strict";
  const MARKUP = `
    <div class="stage" tabindex="-1"><img class="before" alt="before"><img class="after" alt="after">
      <span class="side on-before">before</span><span class="side on-after">after</span>
      <div class="divider" aria-hidden="true"><span></span></div><p class="state" role="status"></p></div>
    <div class="bar"><strong class="name"></strong>
      <input type="range" min="0" max="1000" value="500" aria-label="How much is shown of before and after">
      <span class="buttons"><button data-do="out" aria-label="Smaller">−</button><output class="zoom"></output>
      <button data-do="in" aria-label="Larger">+</button><button data-do="fit">Fit</button>
      <button data-do="one" title="One pixel of the result on one of the screen">100 %</button>
      <button data-do="close">Close</button></span></div>`;
  const MOST = 32;
  let dialog, stage, before, after, divider, range, size, view, opener;
  const pixel = () => 1 / window.devicePixelRatio;
  const fit = () => Math.min(stage.clientWidth / size[0], stage.clientHeight / size[1]);

  const draw = () => {
    if (!size) return;
    const { scale } = view, box = [stage.clientWidth, stage.clientHeight];
    // Never out of sight; in the middle where there is room.
    for (const i of [0, 1]) {
      const free = box[i] - size[i] * scale;
      view.at[i] = free >= 0 ? free / 2 : Math.min(0, Math.max(free, view.at[i]));
    }
    const left = (range.value / 1000) * box[0];
    for (const image of [before, after]) {
      image.style.width = `${size[0] * scale}px`;
      image.style.height = `${size[1] * scale}px`;
      image.style.transform = `translate(${view.at[0]}px, ${view.at[1]}px)`;
      image.style.imageRendering = scale >= 2 * pixel() ? "pixelated" : "auto";
    }
    const cut = Math.min(Math.max(left - view.at[0], 0), size[0] * scale);
    after.style.clipPath = `inset(0 0 0 ${cut}px)`;
    before.style.clipPath = `inset(0 ${size[0] * scale - cut}px 0 0)`;
    divider.style.left = `${left}px`;
    dialog.querySelector(".zoom").textContent = `${Math.round((scale / pixel()) * 100)} %`;
    range.setAttribute("aria-valuetext", `${Math.round(range.value / 10)} % before`);
  };
  // Around a point of the stage, which stays where it is.
  const zoom = (scale, x = stage.clientWidth / 2, y = stage.clientHeight / 2) => {
    scale = Math.min(Math.max(scale, Math.min(fit(), pixel())), Math.max(fit(), MOST * pixel()));
    view.at = [x, y].map((place, i) => place - ((place - view.at[i]) / view.scale) * scale);
    view.scale = scale;
    draw();
  };
  const actions = {
    in: () => zoom(view.scale * 1.5), out: () => zoom(view.scale / 1.5),
    fit: () => zoom(fit()), one: () => zoom(pixel()), close: () => dialog.close(),
  };
  const KEYS = { "+": "in", "=": "in", "-": "out", 0: "fit", 1: "one" };

  const build = () => {
    dialog = document.createElement("dialog");
    dialog.className = "intsr-viewer";
    dialog.setAttribute("aria-label", "Before and after");
    dialog.innerHTML = MARKUP;
    document.body.append(dialog);
    [stage, before, after, divider, range] = [".stage", ".before", ".after", ".divider", "input"]
      .map((name) => dialog.querySelector(name));
    range.addEventListener("input", draw);
    dialog.addEventListener("click", (event) => actions[event.target.closest("[data-do]")?.dataset.do]?.());
    dialog.addEventListener("keydown", (event) => actions[KEYS[event.key]]?.());
    dialog.addEventListener("close", () => { before.src = after.src = "data:,"; size = null; document.querySelector(`[data-after="${opener}"]`)?.focus(); });
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = stage.getBoundingClientRect();
      zoom(view.scale * 1.0015 ** -event.deltaY, event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    moving();
    new ResizeObserver(draw).observe(stage);
  };
  // One finger or the mouse moves the divider where it is near, else the picture; two fingers zoom.
  const moving = () => {
    const held = new Map();
    let moves_divider = false;
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      const box = stage.getBoundingClientRect();
      held.set(event.pointerId, [event.clientX, event.clientY]);
      moves_divider = held.size === 1 && Math.abs(event.clientX - box.left - divider.offsetLeft) < 24;
    });
    stage.addEventListener("pointermove", (event) => {
      const last = held.get(event.pointerId);
      if (!last) return;
      const box = stage.getBoundingClientRect(), now = [event.clientX, event.clientY];
      const other = [...held].find(([id]) => id !== event.pointerId)?.[1];
      held.set(event.pointerId, now);
      if (moves_divider) {
        range.value = ((now[0] - box.left) / box.width) * 1000;
      } else if (other) {
        const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
        zoom(view.scale * apart(now) / apart(last), (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
      } else {
        view.at = view.at.map((place, i) => place + now[i] - last[i]);
      }
      draw();
    });
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => held.delete(event.pointerId));
  };

  const open = (button) => {
    if (!dialog) build();
    opener = button.dataset.after;
    const state = dialog.querySelector(".state");
    dialog.querySelector(".name").textContent = button.dataset.name;
    state.textContent = "Loading…";
    size = [Number(button.dataset.width), Number(button.dataset.height)];
    range.value = 500;
    dialog.showModal();
    view = { scale: Math.min(fit(), pixel()), at: [0, 0] };
    draw();
    const loaded = [before, after].map((image) => new Promise((done, fail) => {
      image.onload = done;
      image.onerror = () => fail(image);
    }));
    before.src = button.dataset.before;
    after.src = button.dataset.after;
    Promise.all(loaded).then(() => { state.textContent = ""; draw(); }, async (image) => {
      if (size) state.textContent = await (await fetch(image.src)).text();
    });
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-compare]");
    if (button) open(button);
    if (event.target.closest?.("[data-theme-switch]")) document.body.classList.toggle("dark");
  });
})();
