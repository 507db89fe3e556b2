previous=$(printf '0%.0s' $(seq 64))
for file in ledger/*.json; do
    sed -n 's/.*"payload":"\([^"]*\)".*/\1/p' "$file" | base64 -d >payload
    sed -n 's/.*"sig":"\([^"]*\)".*/\1/p' "$file" | base64 -d >signature
    { printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(stat -c %s payload)"; cat payload; } >signed
    good=
    for key in keys/*.pub; do
        if openssl pkeyutl -verify -pubin -inkey "$key" -rawin -in signed -sigfile signature >/dev/null 2>&1; then good=yes; fi
    done
    [ "$good" ] || echo "$file: WRONG SIGNATURE"
    grep -q "\"previous\":\"$previous\"" payload || echo "$file: WRONG LINK"
    previous=$(b3sum --derive-key 'assay v1 ledger link' --no-names "$file")
done
echo "head $(basename "$file" .json):$previous"
