'use strict';
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const chunks = JSON.parse(document.getElementById('log').textContent);
const at = id => document.getElementById(id);
const make = (tag, cls, text) => { const e = document.createElement(tag); if (cls) e.className = cls; if (text != null) e.textContent = text; return e; };
const took = ms => ms == null ? '' : ms < 1000 ? ms + ' ms' : ms < 60000 ? (ms / 1000).toFixed(1) + ' s' : Math.floor(ms / 60000) + ' m ' + Math.round(ms % 60000 / 1000) + ' s';

// Lines of each step: pieces of one stream are joined until its line feed.
const logs = data.steps.map(() => ({ lines: [], open: ['', ''] }));
for (const [step, , stream, text] of chunks) {
  const log = logs[step];
  const parts = (log.open[stream] + text).split('\n');
  log.open[stream] = parts.pop();
  for (const part of parts) log.lines.push([stream, part]);
}
for (const log of logs) log.open.forEach((rest, stream) => { if (rest) log.lines.push([stream, rest]); });

// What a terminal would show: a carriage return goes back to the line's start, and colours are SGR sequences.
const ESCAPE = /\x1b\[([0-9;:]*)m|\x1b\[[0-?]*[ -\/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]/g;
const COLOURS = ['#57606a', '#cf222e', '#1a7f37', '#9a6700', '#0969da', '#8250df', '#1b7c83', '#8c959f', '#6e7781', '#ff6a69', '#3fb950', '#d29922', '#58a6ff', '#bc8cff', '#39c5cf', '#b1bac4'];
const plain = line => { const text = line.replace(ESCAPE, ''); return text.replace(/\r+$/, '').replace(/^.*\r/, ''); };
const colour256 = n => {
  if (n < 16) return COLOURS[n];
  if (n > 231) { const g = 8 + (n - 232) * 10; return `rgb(${g},${g},${g})`; }
  const v = i => i ? 55 + i * 40 : 0; n -= 16;
  return `rgb(${v(Math.floor(n / 36))},${v(Math.floor(n / 6) % 6)},${v(n % 6)})`;
};
const sgr = (style, codes) => {
  const c = codes === '' ? [0] : codes.split(/[;:]/).map(Number);
  for (let i = 0; i < c.length; i++) {
    const n = c[i];
    if (n === 0) style = {};
    else if (n === 1) style.bold = true; else if (n === 2) style.dim = true; else if (n === 3) style.italic = true; else if (n === 4) style.under = true;
    else if (n === 22) style.bold = style.dim = false; else if (n === 23) style.italic = false; else if (n === 24) style.under = false;
    else if (n >= 30 && n <= 37) style.fg = COLOURS[n - 30]; else if (n >= 90 && n <= 97) style.fg = COLOURS[n - 82];
    else if (n >= 40 && n <= 47) style.bg = COLOURS[n - 40]; else if (n >= 100 && n <= 107) style.bg = COLOURS[n - 92];
    else if (n === 39) style.fg = null; else if (n === 49) style.bg = null;
    else if (n === 38 || n === 48) {
      const key = n === 38 ? 'fg' : 'bg';
      if (c[i + 1] === 5) { style[key] = colour256(c[i + 2]); i += 2; }
      else if (c[i + 1] === 2) { style[key] = `rgb(${c[i + 2]},${c[i + 3]},${c[i + 4]})`; i += 4; }
    }
  }
  return style;
};
let wanted = '';
const marked = (into, text) => {
  if (!wanted) { into.append(text); return; }
  const low = text.toLowerCase(); let from = 0, hit;
  while ((hit = low.indexOf(wanted, from)) >= 0) { into.append(text.slice(from, hit), make('mark', '', text.slice(hit, hit + wanted.length))); from = hit + wanted.length; }
  into.append(text.slice(from));
};
const shown = line => {
  line = line.replace(/\r+$/, '').replace(/^[^]*\r/, '');
  const out = document.createDocumentFragment(); let style = {}, from = 0;
  const put = text => {
    if (!text) return;
    const s = make('span');
    if (style.fg) s.style.color = style.fg; if (style.bg) s.style.background = style.bg; if (style.bold) s.style.fontWeight = 'bold';
    if (style.dim) s.style.opacity = .7; if (style.italic) s.style.fontStyle = 'italic'; if (style.under) s.style.textDecoration = 'underline';
    marked(s, text); out.append(s);
  };
  for (const m of line.matchAll(ESCAPE)) { put(line.slice(from, m.index)); from = m.index + m[0].length; if (m[1] != null) style = sgr(style, m[1]); }
  put(line.slice(from));
  return out;
};

at('summary').append(make('span', 'status ' + data.status, data.status), ` in ${took(data.duration)}, begun ${data.began}, run ${data.run}`);
for (const w of data.warnings) at('warnings').append(make('p', '', 'warning: ' + w));

const total = Math.max(1, data.duration, ...data.steps.map(s => s.end || 0));
const percent = ms => (100 * ms / total).toFixed(3) + '%';
for (const s of data.steps) {
  if (s.start == null) continue;
  const row = make('div', 'row'), lane = make('div', 'lane ' + s.status), end = s.end == null ? total : s.end;
  const bar = (tag, cls, from, to, title) => { const e = make(tag, cls); e.style.left = percent(from); e.style.width = percent(Math.max(0, to - from)); e.title = title; lane.append(e); };
  bar('i', '', s.start, end, s.step);
  for (const p of s.parts) bar('b', p.kind, p.start, p.end == null ? end : p.end, `${p.kind}: ${p.name} (${took((p.end == null ? end : p.end) - p.start)})`);
  row.append(make('span', 'label', `${s.job} / ${s.step}`), lane, make('span', 'took', took(end - s.start)));
  at('timeline').append(row);
}

const BLOCK = 200;
const views = data.steps.map((s, i) => {
  const box = make('details'); box.id = 'step-' + i;
  const head = make('summary');
  head.append(make('span', 'status ' + s.status, s.status), ` ${s.job} / ${s.step} `, make('span', 'dim', `${s.kind} ${s.end == null || s.start == null ? '' : took(s.end - s.start)} ${logs[i].lines.length} lines`));
  box.append(head);
  const told = [s.error && 'error: ' + s.error, s.hint && 'hint: ' + s.hint, s.image && 'image: ' + s.image, s.version && 'version: ' + JSON.stringify(s.version), s.left_out > 0 && s.left_out + ' bytes of output are not in this page'].filter(Boolean);
  if (told.length) box.append(make('p', 'told', told.join('\n')));
  const log = make('pre', 'log'); box.append(log);
  const draw = () => {
    log.replaceChildren(); let block = null, number = 0;
    logs[i].lines.forEach(([stream, line], n) => {
      if (wanted && !plain(line).toLowerCase().includes(wanted)) return;
      if (number++ % BLOCK === 0) { block = make('div', 'lines'); log.append(block); }
      const row = make('div', stream ? 'err' : ''); row.dataset.n = n + 1; row.append(shown(line)); block.append(row);
    });
  };
  box.addEventListener('toggle', () => { if (box.open) draw(); else log.replaceChildren(); });
  at('steps').append(box);
  if (s.status === 'failed' || s.status === 'errored') box.open = true;
  return { box, draw };
});
const search = text => {
  wanted = text.toLowerCase(); let hits = 0;
  logs.forEach((log, i) => {
    const n = wanted ? log.lines.filter(([, line]) => plain(line).toLowerCase().includes(wanted)).length : 0;
    hits += n; const { box, draw } = views[i];
    box.hidden = Boolean(wanted) && !n;
    if (wanted && n) box.open = true;
    if (box.open) draw();
  });
  at('found').textContent = wanted ? `${hits} lines` : '';
};
let timer;
at('search').addEventListener('input', e => { clearTimeout(timer); timer = setTimeout(() => search(e.target.value), 120); });
// A link may name a step or a search: report.html#step-3, report.html#q=panicked
const follow = () => {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.startsWith('q=')) { at('search').value = hash.slice(2); search(hash.slice(2)); }
  const view = views[hash.startsWith('step-') ? Number(hash.slice(5)) : -1];
  if (view) { view.box.open = true; view.draw(); view.box.scrollIntoView(); }
};
addEventListener('hashchange', follow);
follow();
for (const leaf of document.querySelectorAll('#graph .leaf')) {
  // An `across` runs a step for each value, those of all but the first under further names: the worst is shown.
  const rank = ['skipped', 'succeeded', 'aborted', 'failed', 'errored'], further = name => name.startsWith(leaf.dataset.step + '.x') && /^x+[0-9]/.test(name.slice(leaf.dataset.step.length + 1));
  let i = -1;
  data.steps.forEach((s, n) => { if (s.job === leaf.dataset.job && (s.step === leaf.dataset.step || further(s.step)) && (i < 0 || rank.indexOf(s.status) > rank.indexOf(data.steps[i].status))) i = n; });
  if (i < 0) continue;
  leaf.classList.add(data.steps[i].status);
  leaf.addEventListener('click', () => { views[i].box.open = true; views[i].box.scrollIntoView(); });
}
document.body.dataset.ready = 'yes';
})();
