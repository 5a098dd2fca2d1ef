// Image galleries: the nearest images to a sample of test queries, correct and wrong ones marked, one strip per arm.

const MOST_STRIPS = 5;

function galleryOf(block) {
  return DATA.gallery.find(gallery => gallery.block === block.number);
}

function galleryHtml(block, rows) {
  const gallery = galleryOf(block);
  const visible = rows.map(row => row.full).filter(arm => gallery.arms.includes(arm));
  const arms = visible.slice(0, MOST_STRIPS);
  if (!arms.length) return '<p class="key">No visible row has saved embeddings.</p>';
  const tile = (image, kind) => {
    const content = gallery.images[image] ? `<img src="${gallery.images[image]}" alt="">` : plain(gallery.names[image].split("/").pop());
    return `<span class="tile ${kind}" role="img" aria-label="${kind}: ${plain(gallery.names[image])}" title="${plain(gallery.names[image])}">${content}</span>`;
  };
  const strips = gallery.queries.map(([query, neighboursByArm]) => `<div class="shelf">${arms.map(arm => {
    const neighbours = neighboursByArm[gallery.arms.indexOf(arm)];
    return `<div class="strip"><span class="who" title="${plain(arm)}">${plain(arm)}</span>${tile(query, "asked")}${neighbours.map(([image, right]) => tile(image, right ? "right" : "wrong")).join("")}</div>`;
  }).join("")}</div>`);
  const hiddenNote = visible.length > arms.length ? ` The first ${arms.length} of ${visible.length} arms: filter to see others.` : "";
  return `<p class="key">${plain(gallery.note)} Left: the query; then its nearest images, nearest first; green: correct, red with ×: wrong.${hiddenNote}</p>${strips.join("")}`;
}
