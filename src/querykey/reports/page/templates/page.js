(() => {
  "use strict";
  const tip = document.getElementById("tip");
  const REACH = 24;

  const distance = (mark, event) => {
    const box = mark.getBoundingClientRect();
    const across = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
    const down = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
    return Math.hypot(across, down);
  };
  const nearest = (drawing, event) => {
    let best = null, least = REACH;
    for (const mark of drawing.querySelectorAll("[aria-label]")) {
      const apart = distance(mark, event);
      if (apart <= least) [best, least] = [mark, apart];
    }
    return best;
  };
  const picture = (sprite, place) => {
    const element = document.createElement("span");
    element.className = `picture ${sprite}`;
    document.body.append(element);
    const style = getComputedStyle(element);
    const size = parseFloat(style.width);
    const columns = Math.round(parseFloat(style.backgroundSize) / size);
    element.style.backgroundPosition = `-${(place % columns) * size}px -${Math.floor(place / columns) * size}px`;
    return element;
  };
  const show = (event) => {
    const drawing = event.target.closest?.("svg.drawing");
    const mark = drawing && nearest(drawing, event);
    tip.hidden = !mark;
    if (!mark) return;
    const { sprite } = drawing.closest("figure").dataset;
    const place = Number(mark.dataset.place ?? -1);
    tip.replaceChildren(...(sprite && place >= 0 ? [picture(sprite, place)] : []), mark.getAttribute("aria-label"));
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(8, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
  };
  for (const figure of document.querySelectorAll("figure")) {
    figure.addEventListener("pointermove", show);
    figure.addEventListener("pointerdown", show);
    figure.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
})();
