// What the arms retrieve: for some test images the nearest others, right and wrong ones marked, an arm under the other.

const MOST_STRIPS = 5;

function galleryOf(block) {
  return DATA.gallery.find(shelf => shelf.block === block.number);
}

function galleryHtml(block, rows) {
  const shelf = galleryOf(block);
  const wanted = rows.map(row => row.full).filter(arm => shelf.arms.includes(arm));
  const arms = wanted.slice(0, MOST_STRIPS);
  if (!arms.length) return '<p class="key">No visible row has saved embeddings.</p>';
  const tile = (image, kind) => {
    const inside = shelf.images[image] ? `<img src="${shelf.images[image]}" alt="">` : plain(shelf.names[image].split("/").pop());
    return `<span class="tile ${kind}" role="img" aria-label="${kind}: ${plain(shelf.names[image])}" title="${plain(shelf.names[image])}">${inside}</span>`;
  };
  const strips = shelf.queries.map(([asked, found]) => `<div class="shelf">${arms.map(arm => {
    const near = found[shelf.arms.indexOf(arm)];
    return `<div class="strip"><span class="who" title="${plain(arm)}">${plain(arm)}</span>${tile(asked, "asked")}${near.map(([image, right]) => tile(image, right ? "right" : "wrong")).join("")}</div>`;
  }).join("")}</div>`);
  const cut = wanted.length > arms.length ? ` The first ${arms.length} of ${wanted.length} arms: filter to see others.` : "";
  return `<p class="key">${plain(shelf.note)} Left: the query; then its nearest images, nearest first; green: correct, red with ×: wrong.${cut}</p>${strips.join("")}`;
}
